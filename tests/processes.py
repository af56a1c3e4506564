"""The processes of a command that was started in a session of its own: who they are, what they hold."""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_MIB = 1024.0  # of the KiB that /proc counts in
_PSS = re.compile(rb"^Pss: +(\d+) kB", re.MULTILINE)
_OWN = (
    re.compile(rb"^Pss_Anon: +(\d+) kB", re.MULTILINE),
    re.compile(rb"^Pss_Shmem: +(\d+) kB", re.MULTILINE),
)
_PEAK = re.compile(rb"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def session(leader: int) -> list[int]:
    """The processes of a session but its leader, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != leader:
            with suppress(OSError):
                state, _parent, _group, number = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(number) == leader and state not in "ZX":
                    found.append(int(entry.name))
    return found


def about(pid: int, what: str) -> bytes:
    """A file of the process below /proc; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a session holds at a moment (monotonic): memory in MiB, shared pages counted once; open files.

    `own` is the memory without the pages of programs and libraries, whose share hangs on who else has them.
    """

    when: float
    memory: float
    own: float
    processes: int
    files: int


@dataclass(slots=True)
class Watch:
    """Samples a session every `every` seconds, in a thread, from `with` until its end.

    `largest` is the most that any one process held at any moment, by the kernel's own account: no peak
    between two samples is missed but that of a process's last `every` seconds.
    """

    leader: int
    every: float = 0.1
    samples: list[Sample] = field(default_factory=list)
    largest: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="watch")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join()

    @property
    def peak(self) -> float:
        """The most that all processes held together at a sample, in MiB."""
        return max((sample.memory for sample in self.samples), default=0.0)

    def _run(self) -> None:
        while not self._over.wait(self.every):
            processes = [self.leader, *session(self.leader)]
            rollups = [about(pid, "smaps_rollup") for pid in processes]
            memory = sum(_number(_PSS, rollup) for rollup in rollups) / _MIB
            own = sum(_number(kind, rollup) for rollup in rollups for kind in _OWN) / _MIB
            peaks = [_number(_PEAK, about(pid, "status")) / _MIB for pid in processes]
            self.largest = max(self.largest, *peaks)
            files = sum(map(_open_files, processes))
            self.samples.append(Sample(time.monotonic(), memory, own, len(processes), files))


def _number(pattern: re.Pattern[bytes], text: bytes) -> int:
    match = pattern.search(text)
    return int(match[1]) if match else 0


def _open_files(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0
