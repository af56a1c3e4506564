"""Where a run's CPU time goes, by the threads and processes that spend it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.memory import family

_INTERVAL_S = 0.1
_FEEDER = "feeder"
"""The pipeline runs while this thread of it is, or one of its scorers."""
_BY_THREAD: Final = {
    _FEEDER: "find files",
    "tumorscan-ring": "hand out files",
    "scorer": "call the models",
    "writer": "write masks and rows",
}
_RUNTIME, _COMMIT, _GPU = "runtime's own threads", "commit rows", "drive the GPU"
_BY_PROGRAM: Final = {b"decode_worker": "decode", b"mask_worker": "draw masks"}
STAGES: Final = (_RUNTIME, _GPU, *_BY_THREAD.values(), *_BY_PROGRAM.values(), _COMMIT)


class CpuByStage:
    """Watches this process and its decode workers while entered; made in the thread that calls `score`.

    `seconds` has the CPU seconds of each stage and `wall` the time they were counted in, from when the
    pipeline was first seen to run to when it was last. Threads that Python did not start are the runtime's.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.wall = 0.0
        self._caller = threading.get_native_id()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stages", daemon=True)

    def _watch(self) -> None:
        first: dict[int, int] = {}
        last: dict[int, tuple[str, int]] = {}
        began = 0.0
        while not self._over.wait(_INTERVAL_S):
            names = {each.native_id: each.name for each in threading.enumerate()}
            if not any(name.startswith((_FEEDER, "scorer")) for name in names.values()):
                continue
            found = self._sample(names)
            if not first:
                first, began = {task: spent for task, (_, spent) in found.items()}, time.monotonic()
            last.update(found)
            self.wall = time.monotonic() - began
        for task, (stage, spent) in last.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + (spent - first.get(task, 0)) / 1e9

    def _sample(self, names: dict[int | None, str]) -> dict[int, tuple[str, int]]:
        """Stage and CPU time (ns) of every task."""
        found = {}
        own = threading.get_native_id()
        for folder in Path("/proc/self/task").iterdir():
            task = int(folder.name)
            if task != own:
                found[task] = (self._stage(task, names), _spent(folder / "schedstat"))
        for process in family(os.getpid())[1:]:
            found[process] = (_stage_of(process), _spent(Path(f"/proc/{process}/schedstat")))
        return found

    def _stage(self, task: int, names: dict[int | None, str]) -> str:
        if task == self._caller:
            return _COMMIT
        name = names.get(task, "")
        return next((stage for start, stage in _BY_THREAD.items() if name.startswith(start)), _RUNTIME)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


def _stage_of(process: int) -> str:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return _GPU
    return next((stage for program, stage in _BY_PROGRAM.items() if program in words), _GPU)


def _spent(path: Path) -> int:
    try:
        return int(path.read_text().split()[0])
    except (OSError, IndexError):  # it ended meanwhile
        return 0
