"""One run of `engine.scoring` in a process of its own, watched from outside and inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from benchmarks.machine import CHECKOUT
from benchmarks.memory import PeakMemory
from engine.errors import MachineError
from engine.own_process import tune

STEADY_SECONDS: Final = 0.5
"""Between the first commit and the last, or there is no telling a rate."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to score and how, as `engine.run.Options` has it.

    `null` puts models in that compute nothing, `cores` keeps it on the first so many, `stages` watches where
    the CPU time goes, which costs a little itself: not for runs whose rate counts. `tables` has results.csv
    written once more at the end, alone, to time it. `ray` is a cluster's address.
    """

    inputs: list[str]
    out: str
    bundle: str
    backend: str = "auto"
    precision: str = "auto"
    batch: int = 16
    workers: int | None = None
    limit: int | None = None
    null: bool = False
    cores: int | None = None
    stages: bool = False
    tables: bool = False
    ray: str | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of it. Times in seconds; `first_result` and `total` count from the process's start.

    `seconds` is first slice read to last row committed; `steady` is slices a second of the middle half of
    them, by their commits, so without the start of the workers and the end; of a short run, of the whole.
    `tables` is all that is made at the end, `results_csv` that table and errors.csv alone, where that was
    asked for. `peak_bytes` (0 if it was not watched) of all its processes together, `stages` CPU seconds,
    and `stages_wall` what they were counted in.
    """

    slices: int
    quarantined: int
    has_mask: int
    passed: int
    seconds: float
    steady: float
    start_up: float
    first_result: float
    tables: float
    results_csv: float
    total: float
    stages: dict[str, float] = field(default_factory=dict)
    stages_wall: float = 0.0
    peak_bytes: int = 0

    @property
    def per_second(self) -> float:
        """Slices a second, of this call."""
        return self.slices / self.seconds if self.seconds else 0.0


def run(job: Job, *, memory: bool = False) -> Ran:
    """Run it and wait. Raises MachineError with its last line when it fails."""
    os.sync()  # what was written before, such as a tree of links, is no work of this run
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.child", json.dumps(asdict(job)), repr(time.monotonic())],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ExitStack() as stack:
        watch = stack.enter_context(PeakMemory(process.pid)) if memory else None
        out, err = process.communicate()
    if process.returncode:
        reason = (err.strip() or out.strip() or "no reason given").splitlines()[-1]
        raise MachineError(f"a run of tumorscan ended with status {process.returncode}: {reason}")
    return Ran(**json.loads(out.splitlines()[-1]), peak_bytes=watch.bytes if watch else 0)


def main() -> None:
    job, began = Job(**json.loads(sys.argv[1])), float(sys.argv[2])
    if job.cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.cores])
    tune()  # as the command does
    from benchmarks.null import null_models
    from benchmarks.stages import CpuByStage
    from engine.pipeline import Totals
    from engine.scoring import Options, Watcher, score

    commits: list[tuple[float, int]] = []

    class Commits(Watcher):
        def goes_on(self, totals: Totals) -> None:
            if totals.slices and (not commits or totals.slices > commits[-1][1]):
                commits.append((time.monotonic(), totals.slices))

    options = Options(
        inputs=tuple(job.inputs),
        out=Path(job.out),
        bundle=Path(job.bundle),
        limit=job.limit,
        batch=job.batch,
        workers=job.workers,
        backend=job.backend,
        precision=job.precision,
        ray=job.ray,
    )
    with ExitStack() as stack:
        if job.null:
            stack.enter_context(null_models())
        stages = stack.enter_context(CpuByStage()) if job.stages else None
        outcome = score(options, Commits())
    total = time.monotonic() - began
    timings = json.loads((options.out / "run.json").read_text())["timings"]
    found = Ran(
        slices=outcome.totals.slices,
        quarantined=outcome.totals.quarantined,
        has_mask=outcome.totals.has_mask,
        passed=outcome.totals.ok - outcome.gated_out,
        seconds=outcome.totals.seconds,
        steady=_steady(commits) or outcome.slices_per_second,
        start_up=timings["start_up_seconds"],
        first_result=commits[0][0] - began if commits else 0.0,
        tables=timings["tables_seconds"],
        results_csv=_timed_tables(options.ledger, options.out) if job.tables else 0.0,
        total=total,
        stages=stages.seconds if stages else {},
        stages_wall=stages.wall if stages else 0.0,
    )
    facts = asdict(found)
    del facts["peak_bytes"]
    print(json.dumps(facts))


def _timed_tables(ledger: Path, out: Path) -> float:
    """Seconds that results.csv and errors.csv take, of the rows in `ledger`, once more and beside `out`."""
    from engine.ledger_readers import stored_rows
    from engine.outputs.tables import write_tables

    with TemporaryDirectory(dir=out.parent) as folder:
        began = time.monotonic()
        write_tables(stored_rows(ledger), Path(folder))
        return time.monotonic() - began


def _steady(commits: list[tuple[float, int]]) -> float:
    """Slices a second of the middle half of all; 0 where the commits are too close to tell."""
    if not commits or commits[-1][0] - commits[0][0] < STEADY_SECONDS:
        return 0.0
    times, counts = zip(*commits, strict=True)
    began, ended = np.interp([counts[-1] / 4, counts[-1] * 3 / 4], counts, times)
    return float(counts[-1] / 2 / (ended - began))


if __name__ == "__main__":
    main()
