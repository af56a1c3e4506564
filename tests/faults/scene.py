"""Where a case plays: a folder of its own with input and bundle, and the command run in it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.badfiles import png, tiff
from tests.processes import about, session
from tests.runs import command, environment, files_below, write_slices
from tests.tinybundle import make_tiny_bundle

SLICES = 110
FINISHED = 4
"""The exit status of every whole run here: three files of the input are bad, so that errors.csv has rows."""
BATCHES = (1, 2, 3, 6, 16)
"""Small ones for the most part: of 16 slices a block, all of the input is under way at once."""
DEADLINE_S = 180.0
_POLL_S = 0.004


@dataclass(frozen=True, slots=True)
class Left:
    """What a run left for its user: both tables of slices, and every other file by its path."""

    results: bytes
    errors: bytes
    files: dict[str, bytes]

    @classmethod
    def of(cls, out: Path) -> Left:
        files = {**files_below(out), "volumes.csv": (out / "volumes.csv").read_bytes()}
        return cls((out / "results.csv").read_bytes(), (out / "errors.csv").read_bytes(), files)

    def difference(self, other: Left) -> str:
        """One line that says where `other` is not the same; "" where nothing is."""
        for name, ours, theirs in (
            ("results.csv", self.results, other.results),
            ("errors.csv", self.errors, other.errors),
        ):
            if ours != theirs:
                old, new = ours.splitlines(), theirs.splitlines()
                changed = sorted(set(new) ^ set(old))
                return f"{name} differs ({len(old)} and {len(new)} lines), such as {changed[:2]}"
        if lost := sorted(self.files.keys() - other.files.keys()):
            return f"{len(lost)} masks are missing, such as {lost[0]}"
        if strange := sorted(other.files.keys() - self.files.keys()):
            return f"{len(strange)} masks are too many, such as {strange[0]}"
        damaged = [name for name, data in self.files.items() if other.files[name] != data]
        return f"{len(damaged)} masks differ, such as {damaged[0]}" if damaged else ""


@dataclass(slots=True)
class Run:
    """The command, started in a session of its own; what it says goes to a file."""

    process: subprocess.Popen[bytes]
    out: Path
    words: tuple[str, ...]
    log: Path
    begun: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, timeout: float = DEADLINE_S) -> int:
        """The exit status. A run that does not end in time is killed, and the case has failed."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL, group=True)
            self.process.wait()
            raise AssertionError(f"the run did not end within {timeout:g} s") from None
        self.seconds = time.monotonic() - self.begun
        self._expect_no_orphans()
        return status

    def signal(self, number: int, *, group: bool = False) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def workers(self) -> list[int]:
        """The decode processes that are up (they have mapped the ring), in the order of their start."""
        return sorted(pid for pid in session(self.process.pid) if b"tumorscan-ring" in about(pid, "maps"))

    def masks(self) -> int:
        return sum(1 for _ in (self.out / "masks").glob("*/*_mask.png"))

    def at_work(self) -> bool:
        return (self.out / "masks").is_dir()

    def until(self, condition: object, timeout: float = DEADLINE_S) -> bool:
        """Poll `condition` until it holds; False when the run ended before."""
        assert callable(condition)
        until = time.monotonic() + timeout
        while not condition():
            if self.ended() or time.monotonic() > until:
                return False
            time.sleep(_POLL_S)
        return True

    def _expect_no_orphans(self) -> None:
        """Decode processes die with the run, however it died."""
        until = time.monotonic() + 10
        while left := [pid for pid in session(self.process.pid) if about(pid, "cmdline")]:
            if time.monotonic() > until:
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"{len(left)} processes outlived the run")
            time.sleep(0.02)


@dataclass(slots=True)
class Base:
    """What all cases of one call share: an input that nobody touches, its bundle, its undisturbed run."""

    folder: Path
    seconds: float
    """How long the undisturbed run took, start-up included."""
    left: Left

    @classmethod
    def make(cls, folder: Path) -> Base:
        """Write the input and score it, twice so that the second time is that of warm caches."""
        write_slices(folder / "data", SLICES, patients=5)
        (folder / "data" / "p1" / "empty.tif").write_bytes(b"")
        (folder / "data" / "p3" / "text.png").write_bytes(b"patient, date, finding\n" * 40)
        (folder / "data" / "p3" / "cut.tif").write_bytes(tiff(256, 256)[:9000])
        (folder / "data" / "p4" / "small.png").write_bytes(png(31, 47))
        make_tiny_bundle(folder / "bundle")
        base = cls(folder, 0.0, Left(b"", b"", {}))
        for name in ("warm", "whole"):
            scene = Scene(base, folder / name, random.Random(0))
            run = scene.start()
            assert run.wait() == FINISHED, run.said
            base.seconds, base.left = run.seconds, Left.of(scene.out)
        return base


class Scene:
    """A case's folder: `data` and `bundle` (links to those of all, until made its own), and `out`.

    `undo` is closed when the case is over: kinds leave there what they have mounted.
    """

    def __init__(self, base: Base, folder: Path, chance: random.Random) -> None:
        self.base = base
        self.folder = folder
        self.chance = chance
        self.out = folder / "out"
        self.prefix: tuple[str, ...] = ()
        self.runs: list[Run] = []
        self.undo = ExitStack()
        folder.mkdir(parents=True)
        for name in ("data", "bundle"):
            (folder / name).symlink_to(base.folder / name)

    def own(self, name: str) -> Path:
        """Make `data` or `bundle` a copy that this case may change."""
        path = self.folder / name
        path.unlink()
        shutil.copytree(self.base.folder / name, path)
        return path

    def slices(self) -> list[Path]:
        """Every good slice of the input, with a lesion or without one."""
        return sorted((self.folder / "data").glob("p*/s_*.tif"))

    def start(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        module: str = "engine.cli",
        stderr: int | None = None,
    ) -> Run:
        """Start the command, each time with another --batch and other --workers."""
        log = self.folder / f"said-{len(self.runs)}.txt"
        line = command("score", "data", "--bundle", "bundle", "--backend", "onnxruntime", "--out", self.out)
        line[line.index("engine.cli")] = module
        line += ["--batch", str(self.chance.choice(BATCHES))]
        line += ["--workers", str(self.chance.choice((1, 2))), *words]
        with log.open("wb") as file:
            target = file.fileno() if stderr is None else stderr
            process = subprocess.Popen(
                [*self.prefix, *prefix, *line],
                cwd=self.folder,
                env={**environment(), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=target,
                start_new_session=True,
            )
        run = Run(process, self.out, words, log)
        self.runs.append(run)
        return run

    def expect(self, run: Run, *statuses: int, says: str = "") -> int:
        """Wait for `run`; it must end with one of `statuses`, and without a fault of its own."""
        status = run.wait()
        said = run.said.strip()
        assert status in statuses, f"ended with {status}, not {statuses}: {said[-600:]}"
        assert "Traceback" not in said, said[-900:]
        assert not says or status == FINISHED or says in said, f"does not say {says!r}: {said[-600:]}"
        return status
