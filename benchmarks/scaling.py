"""Time and memory against the number of files, from a thousand to a million.

    python -m benchmarks.scaling --data SLICES

Files are hard links to real slices, a thousand a folder, and once all in one flat folder. The models are null
models (see benchmarks/host.py), so that a million takes minutes; what they leave out does not depend on the
number of files. Every run ends before its last files and is then continued, which times a resume over all
rows that are finished. Small trees are run several times, as a run takes a second or two. What they write
stays until all are done (see benchmarks/host.py).
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks import child
from benchmarks.arguments import QUICK_SLICES, Common, Report, add_common, common, run, say
from benchmarks.slices import replicate, warm, work_set
from engine.build import BATCH
from engine.errors import UsageError
from engine.run import BLOCK

DISTINCT: Final = 2048
PER_FOLDER: Final = 1000
SMALLEST: Final = 1000
SMALL: Final = 10_000
TIMES: Final = 5
"""How often a tree of up to SMALL files is run in a repeat."""
TAIL: Final = 500
"""Files that are left for the continuation."""
MODELS: Final = 64
"""Files that the real models score, for the time to their first result."""


@dataclass(frozen=True, slots=True)
class Tree:
    """So many files, in folders of PER_FOLDER or in a flat one."""

    files: int
    flat: bool = False

    @property
    def of(self) -> dict[str, str]:
        return {"files": str(self.files), "layout": "one flat folder" if self.flat else "folders"}


def main() -> None:
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=first)
    add_common(parser, minutes=30, repeats=1)
    parser.add_argument("--largest", type=int, default=1_000_000, help="files of the largest tree")
    parsed = parser.parse_args()
    options = common(parsed)
    report = Report("scaling", options)
    trees = [Tree(400), Tree(400, flat=True)] if options.quick else _trees(parsed.largest)
    with options.folder() as folder:
        work = work_set(options.data, QUICK_SLICES if options.quick else DISTINCT, folder / "data")
        left = options.minutes * 60.0
        for repeat in range(options.repeats):
            a_file = 0.0
            for tree in trees:
                if a_file * tree.files > left:
                    report.notes.append(f"{tree.files} files left out: they take longer than --minutes")
                    continue
                say(f"{tree.files:,} files, {tree.of['layout']}, repeat {repeat + 1} of {options.repeats}")
                replicate(work.files, folder / "tree", tree.files, tree.files if tree.flat else PER_FOLDER)
                warm(work.files)
                times = TIMES if tree.files <= SMALL and not options.quick else 1
                for time in range(times):
                    out = folder / f"out{repeat}-{time}-{tree.files}{'-flat' * tree.flat}"
                    seconds = measure(tree, options, folder / "tree", out, report)
                    a_file, left = seconds / tree.files, left - seconds
                shutil.rmtree(folder / "tree")
        report.write(work, folder, {"largest": parsed.largest, "tail": TAIL, "batch": BATCH})


def measure(tree: Tree, options: Common, data: Path, out: Path, report: Report) -> float:
    """A run of all files but the last, its continuation, and the real models' first result; seconds taken."""
    tail = min(TAIL, tree.files // 4)
    job = child.Job([str(data)], str(out), str(options.bundle.folder), null=True, batch=BATCH)
    whole = child.run(replace(job, limit=tree.files - tail, tables=True), memory=True)
    resumed = child.run(job, memory=True)
    again = child.run(job)
    real = child.run(replace(job, null=False, batch=BLOCK, limit=MODELS, out=f"{out}-models"), memory=True)
    if (whole.slices + resumed.slices, again.slices) != (tree.files, 0):
        raise UsageError(f"{tree.files} files became {whole.slices} and {resumed.slices} rows")
    found = {
        "rate": ("slices/s", whole.per_second),
        "steady rate": ("slices/s", whole.steady),
        "peak memory": ("MB", whole.peak_bytes / 1e6),
        "first result": ("s", whole.first_result),
        "first result, real models": ("s", real.first_result),
        "results.csv": ("s", whole.results_csv),
        "all tables": ("s", whole.tables),
        "whole command": ("s", whole.total),
        "resume: first new result": ("s", resumed.first_result),
        "resume: peak memory": ("MB", resumed.peak_bytes / 1e6),
        "nothing left to do": ("s", again.total),
    }
    for name, (unit, value) in found.items():
        report.rows.add(tree.of, name, unit, value)
    return whole.total + resumed.total + again.total + real.total


def _trees(largest: int) -> list[Tree]:
    """Powers of ten up to `largest`, then that one once more in a flat folder."""
    sizes = []
    size = SMALLEST
    while size < largest:
        sizes.append(size)
        size *= 10
    return [*(Tree(each) for each in (*sizes, largest)), Tree(largest, flat=True)]


if __name__ == "__main__":
    run(main)
