"""What a Ray cluster costs over a run of this machine alone: the same slices, cores and models.

    python -m benchmarks.cluster --data SLICES

Each repeat scores the slices once without and once with a cluster of one node that has all cores, in turned
order. Starting that cluster is told by itself: `rate` begins when the first slice is read.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks import child
from benchmarks.arguments import QUICK_SLICES, Common, Report, add_common, common, run, say
from benchmarks.slices import WorkSet, warm, work_set
from engine.errors import UsageError
from engine.run import BLOCK

SLICES: Final = 4096
PLACES: Final[dict[str, str | None]] = {"this machine": None, "a Ray cluster of it": "local"}


def main() -> None:
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=first)
    add_common(parser, minutes=20, repeats=3)
    parser.add_argument("--backend", default="openvino", help="openvino or onnxruntime")
    parser.add_argument("--batch", type=int, default=BLOCK, help="slices decoded and scored together")
    parser.add_argument("--slices", type=int, default=SLICES, help=f"how many (else {SLICES})")
    parsed = parser.parse_args()
    options = common(parsed)
    report = Report("cluster", options)
    with options.folder() as folder:
        work = work_set(options.data, QUICK_SLICES if options.quick else parsed.slices, folder / "data")
        job = child.Job(
            [str(work.folder)], "", str(options.bundle.folder), backend=parsed.backend, batch=parsed.batch
        )
        for repeat in range(options.repeats):
            measure(repeat, job, work, options, folder, report)
        report.write(work, folder, {"backend": parsed.backend, "batch": parsed.batch})


def measure(
    repeat: int, job: child.Job, work: WorkSet, options: Common, folder: Path, report: Report
) -> None:
    """Both ways once, one behind the other; what they leave must be the same."""
    left: dict[str, bytes] = {}
    rates: dict[str, float] = {}
    order = list(PLACES) if repeat % 2 == 0 else list(PLACES)[::-1]
    for place in order:
        say(f"{place}, repeat {repeat + 1} of {options.repeats}")
        out = folder / "out"
        warm(work.files)
        ran = child.run(replace(job, out=str(out), ray=PLACES[place]))
        left[place] = (out / "results.csv").read_bytes()
        shutil.rmtree(out)
        rates[place] = ran.per_second
        found = {
            "rate": ("slices/s", ran.per_second),
            "steady rate": ("slices/s", ran.steady),
            "start-up": ("s", ran.start_up),
            "whole command": ("s", ran.total),
        }
        for name, (unit, value) in found.items():
            report.rows.add({"on": place}, name, unit, value)
    if len(set(left.values())) > 1:
        raise UsageError("results.csv of the cluster is not that of the run without one")
    alone, on_cluster = (rates[place] for place in PLACES)
    report.rows.add({"on": list(PLACES)[1]}, "of the rate alone", "", on_cluster / alone)


if __name__ == "__main__":
    run(main)
