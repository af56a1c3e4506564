"""A run for as long as you like, a fault a minute: memory, open files and rate are to stay what they were.

`python -m tests.faults.soak --minutes 45 --folder D --json soak.json --plot docs/images/soak.png`

The command reads its list from a pipe that is written for as long as time lasts, the same slices again and
again, each time under other names: with --bundle real ones (of the folder TUMORSCAN_LGG) or phantoms, else
those that a tiny bundle knows. When it is killed or stopped, the same command continues with the same list.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults import shim
from tests.faults.kinds.signals import run_signal
from tests.faults.scene import FINISHED, Run
from tests.faults.soak_check import expect_nothing_lost
from tests.faults.soak_report import draw, flat, summary
from tests.processes import Sample, Watch
from tests.runs import command, environment, write_slices
from tests.tinybundle import make_tiny_bundle
from trainer.phantoms import write_phantoms

SLICES = 300
"""Of the base: each loop has a link to each of them."""
LOOPS_AHEAD = 4
MINUTE = 60.0
_PROGRESS = re.compile(r"^([\d,]+) slices, ", re.MULTILINE)
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL)
ENDS_RUN = ("sigkill", "sigterm", "ctrl_c", "ledger_slow", "ledger_flaky", "input_error")
AT_WORKERS = {
    "worker_killed": signal.SIGKILL,
    "worker_crashed": signal.SIGSEGV,
    "worker_hung": signal.SIGSTOP,
}
KINDS = (*ENDS_RUN, *AT_WORKERS, "worker_out_of_memory", "second_run", "paused")
"""Most have the names of tests/faults/kinds. Those of the calls kill the run, and hurt its next one."""


@dataclass(slots=True)
class Soak:
    """One soak: its input and output, and what was seen of it. Times are seconds from its start."""

    folder: Path
    minutes: float
    seed: int
    words: tuple[str, ...]
    begun: float = 0.0
    listed: list[str] = field(default_factory=list)
    faults: list[tuple[float, str]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    scored: list[tuple[float, int]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    _runs: int = 0

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def seconds(self) -> float:
        return self.minutes * MINUTE

    @staticmethod
    def ends_run(kind: str) -> bool:
        return kind in ENDS_RUN

    def play(self) -> None:
        """Run until the time is up and every slice that was listed has its row; then mend and look."""
        chance = random.Random(self.seed)
        kinds: list[str] = []
        self.begun = time.monotonic()
        hurt: dict[str, str] = {}
        while True:
            run = self._start(hurt)
            feeder = threading.Thread(target=self._feed, args=(run,), name="feeder")
            feeder.start()
            with Watch(run.process.pid, every=1.0) as watch:
                hurt = self._hurt_by_the_minute(run, chance, kinds)
            self.statuses.append(run.wait())
            feeder.join()
            assert run.process.stdin is not None
            self.samples += [self._since_begun(sample) for sample in watch.samples]
            assert "Traceback" not in run.said, run.said[-900:]
            if self.statuses[-1] in (0, FINISHED):
                break
            assert self.statuses[-1] in STOPPED, f"ended with {self.statuses[-1]}: {run.said[-600:]}"
        self._mend()
        expect_nothing_lost(self.folder, self.listed)

    def _hurt_by_the_minute(self, run: Run, chance: random.Random, kinds: list[str]) -> dict[str, str]:
        """A fault whenever a minute is over, until the run has ended; what its next one starts with."""
        while not run.ended():
            time.sleep(0.2)
            self._note_progress(run)
            due = (len(self.faults) + 1) * MINUTE
            if self._now() < due or due > self.seconds - MINUTE / 2 or not _PROGRESS.search(run.said):
                continue
            if not kinds:
                kinds += chance.sample(KINDS, len(KINDS))
            kind = kinds.pop()
            self.faults.append((self._now(), kind))
            print(f"{self._now():7.0f} s  {kind}", flush=True)
            self._strike(kind, run, chance)
            if kind in ENDS_RUN:
                return self._hurting_calls(kind, chance)
        return {}

    def _strike(self, kind: str, run: Run, chance: random.Random) -> None:
        if kind in AT_WORKERS or kind == "worker_out_of_memory":
            workers = run.workers()
            worker = chance.choice(workers) if workers else 0
            if worker and kind == "worker_out_of_memory":
                with suppress(ProcessLookupError):
                    resource.prlimit(worker, resource.RLIMIT_AS, (2**20, 2**20))
            elif worker:
                run_signal(worker, AT_WORKERS[kind])
        elif kind == "second_run":
            second = self._start({})
            assert second.process.stdin is not None
            second.process.stdin.close()
            assert second.wait() == 2, second.said
            assert "another run" in second.said, second.said
        elif kind == "paused":
            run.signal(signal.SIGSTOP, group=True)
            time.sleep(chance.uniform(1, 8))
            run.signal(signal.SIGCONT, group=True)
        elif kind == "sigterm":
            run.signal(signal.SIGTERM, group=chance.random() < 0.5)
        elif kind == "ctrl_c":
            run.signal(signal.SIGINT, group=True)
        else:
            run.signal(signal.SIGKILL)

    def _hurting_calls(self, kind: str, chance: random.Random) -> dict[str, str]:
        """The environment in which the next run's disks are slow or fail for a while."""
        first, mark = chance.randint(1, 20), self.folder / "mark"
        if kind not in ("ledger_slow", "ledger_flaky", "input_error") or shim.why_not():
            return {}
        if kind == "ledger_slow":
            return shim.calls("sync", "run.sqlite", do="sleep 250", first=first, count=100, mark=mark)
        if kind == "ledger_flaky":
            return shim.calls("sync", "run.sqlite", do="errno 5", first=first, count=2, mark=mark)
        return shim.calls("read", f"{self.folder}/data/", do="errno 5", first=first, count=5, mark=mark)

    def _start(self, env: dict[str, str]) -> Run:
        self._runs += 1
        line = command("score", "--files-from", "-", "--out", "out", *self.words)
        line[line.index("engine.cli")] = "tests.faults.impatient"
        log = self.folder / f"said-{self._runs}.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                line,
                cwd=self.folder,
                env={**environment(), **env},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        return Run(process, self.out, tuple(self.words), log)

    def _feed(self, run: Run) -> None:
        """Write the list from its beginning, and go on with new loops while there is time."""
        pipe = run.process.stdin
        assert pipe is not None
        with suppress(BrokenPipeError), pipe:
            written = 0
            while not run.ended():
                if written == len(self.listed):
                    if self._now() > self.seconds:
                        return
                    self.listed += self._loop()
                lines = self.listed[written : written + 50]
                pipe.write("".join(f"{line}\n" for line in lines).encode())
                pipe.flush()
                written += len(lines)

    def _loop(self) -> list[str]:
        number = len(self.listed) // max(1, len(self._base()))
        return [self._link(f"data/loop_{number:05d}", source) for source in self._base()]

    def _link(self, loop: str, source: Path) -> str:
        path = self.folder / loop / source.relative_to(self.folder / "base")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.link(source, path)
        return str(path.relative_to(self.folder))

    def _base(self) -> list[Path]:
        return sorted(path for path in (self.folder / "base").rglob("*") if path.is_file())

    def _mend(self) -> None:
        """What was killed with a decoder, or could not be read, is scored by the call that may."""
        (self.folder / "list").write_text("".join(f"{line}\n" for line in self.listed))
        for words in ((), ("--retry",)):
            line = command("score", "--files-from", "list", "--out", "out", *self.words, *words)
            done = subprocess.run(line, cwd=self.folder, env=environment(), capture_output=True, check=False)
            assert done.returncode in (0, FINISHED), done.stderr.decode()[-900:]

    def _note_progress(self, run: Run) -> None:
        counts = _PROGRESS.findall(run.said)
        if counts:
            count = int(counts[-1].replace(",", ""))
            if not self.scored or self.scored[-1][1] != count:
                self.scored.append((self._now(), count))

    def _now(self) -> float:
        return time.monotonic() - self.begun

    def _since_begun(self, sample: Sample) -> Sample:
        return replace(sample, when=sample.when - self.begun)


def prepare(folder: Path, seed: int, bundle: Path | None) -> tuple[str, ...]:
    """The base slices and a bundle below `folder`; the words that the command has beside its list."""
    base = folder / "base"
    real = os.environ.get("TUMORSCAN_LGG", "")
    if bundle is None:
        write_slices(base, SLICES)
    elif real:
        found = sorted(path for path in Path(real).rglob("*.tif") if not path.stem.endswith("_mask"))
        for path in found[:SLICES]:
            target = base / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    else:
        root = write_phantoms(folder / "drawn", SLICES, seed).root
        for mask in root.rglob("*_mask.tif"):
            mask.unlink()
        root.rename(base)
    (base / "bad").mkdir()
    (base / "bad" / "empty.tif").write_bytes(b"")
    (base / "bad" / "text.png").write_bytes(b"patient, date, finding\n")
    if bundle is not None:
        return ("--bundle", str(bundle.absolute()))
    make_tiny_bundle(folder / "bundle")
    return ("--bundle", "bundle", "--backend", "onnxruntime")


def main() -> int:
    """Soak as long as was asked for; return 1 where something grew, and raise where a slice was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--seed", type=int, default=1, help="decides faults, and drawn slices")
    parser.add_argument("--bundle", type=Path, help="else a tiny one")
    parser.add_argument("--folder", type=Path, help="where it plays")
    parser.add_argument("--json", type=Path, help="write all that was seen there")
    parser.add_argument("--plot", type=Path, help="draw it there")
    asked = parser.parse_args()
    folder = Path(asked.folder or tempfile.mkdtemp(prefix="tumorscan-soak-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    soak = Soak(folder, asked.minutes, asked.seed, prepare(folder, asked.seed, asked.bundle))
    soak.play()
    seen = summary(soak)
    if asked.json:
        asked.json.write_text(json.dumps(seen) + "\n")
    if asked.plot:
        draw(soak, asked.plot)
    for third in seen["thirds"]:
        print(third)
    grown = flat(seen["thirds"])
    print(f"{seen['slices']} slices, {len(soak.faults)} faults, 0 rows lost; {grown or 'nothing grew'}")
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
