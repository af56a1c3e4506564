"""What everything but the models costs: the real pipeline on a null runner, and its parts one by one.

    python -m benchmarks.host --data SLICES

The parts run one at a time, in one thread on one core. The pipeline runs on 1, 2, 4 ... cores, on many links
to the slices: beside a fast GPU its rate is the limit, so blocks and mask processes are those of a GPU. What
is written stays until the end, as ext4 is many times slower at making files for half a minute after thousands
were deleted.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks import child
from benchmarks.arguments import QUICK_SLICES, Common, Report, add_common, common, run, say
from benchmarks.null import NullRunner
from benchmarks.slices import WorkSet, replicate, warm, work_set
from engine.bench import Slices, load_slices
from engine.build import BATCH
from engine.cascade import Cascade, OperatingPoint, Scores
from engine.errors import UsageError
from engine.ledger import Ledger, SliceRow
from engine.outputs.masks import write_png
from engine.outputs.tables import write_tables
from engine.pipeline import COMMIT_ROWS
from engine.ring import DecodedBlock, DecodedSlice
from engine.rows import RowWriter
from engine.run import BLOCK, Options
from engine.sources.discovery import Discovery
from engine.sources.files import read_file
from engine.sources.read import decode_slice

DISTINCT: Final = 512
TRIAL_SLICES: Final = 5000
PER_FOLDER: Final = 1000
TRANSACTIONS: Final = 40
"""Committed and then written as results.csv."""
PARTS: Final = 9
PARTS_SHARE: Final = 0.3
"""Of the minutes; the pipeline has the rest."""

Work = Callable[[], int]
"""Does some of a part's work and says of how many slices; StopIteration when there is no more."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host", description=(__doc__ or "").splitlines()[0]
    )
    add_common(parser, minutes=6, repeats=5)
    parser.add_argument("--slices", type=int, help="links that the pipeline scores (else to fit --minutes)")
    parser.add_argument("--cores", help="core counts for the pipeline, as in 1,2,4 (else powers of two)")
    parsed = parser.parse_args()
    options = common(parsed)
    cores = _core_counts(parsed.cores)
    report = Report("host", options)
    with options.folder() as folder:
        work = work_set(options.data, QUICK_SLICES if options.quick else DISTINCT, folder / "data")
        warm(work.files)
        seconds = (
            0.05
            if options.quick
            else max(0.5, options.minutes * 60 * PARTS_SHARE / (PARTS * options.repeats))
        )
        measure_parts(work, options, report, folder, seconds)
        count = parsed.slices or _fitting(work, options, folder, cores)
        replicate(work.files, folder / "many", count, PER_FOLDER)
        measure_pipeline(options, report, folder, cores)
        report.write(work, folder, {"slices": count, "batch": BATCH, "seconds_a_part": seconds})


def measure_parts(work: WorkSet, options: Common, report: Report, folder: Path, seconds: float) -> None:
    """Time each part alone, in one thread on one core, in turn, `repeats` times."""
    loaded = load_slices(Options((str(work.folder),), folder), len(work.files))
    cv2.setNumThreads(1)
    with _one_core():
        for repeat in range(options.repeats):
            say(f"parts, repeat {repeat + 1} of {options.repeats}")
            for name, part in _parts(work, loaded, folder / f"parts{repeat}"):
                _time(name, part, seconds, report)


def measure_pipeline(options: Common, report: Report, folder: Path, cores: list[int]) -> None:
    """The pipeline on null models: its rate by cores, and then where the CPU time goes on all of them."""
    job = child.Job([str(folder / "many")], "", str(options.bundle.folder), null=True, batch=BATCH)
    for repeat in range(options.repeats):
        for count in cores if repeat % 2 == 0 else reversed(cores):
            say(f"pipeline on {count} cores, repeat {repeat + 1} of {options.repeats}")
            ran = child.run(replace(job, out=str(folder / f"out{repeat}-{count}"), cores=count, tables=True))
            of = {"what": "pipeline", "cores": str(count)}
            report.rows.add(of, "rate", "slices/s", ran.per_second)
            report.rows.add(of, "steady rate", "slices/s", ran.steady)
            report.rows.add(of, "steady rate a core", "slices/s", ran.steady / count)
            report.rows.add(of, "results.csv", "rows/s", ran.slices / ran.results_csv)
    ran = child.run(replace(job, out=str(folder / "stages"), cores=cores[-1], stages=True))
    for stage, spent in ran.stages.items():
        of = {"what": "pipeline by stage", "cores": str(cores[-1]), "stage": stage}
        report.rows.add(of, "CPU", "us/slice", spent / ran.slices * 1e6)


def _parts(work: WorkSet, loaded: Slices, out: Path) -> Iterator[tuple[str, Work]]:
    """Each part by name, ready to be timed before the next is asked for."""
    source, files = str(work.folder), itertools.cycle([os.fsencode(file) for file in work.files])
    contents = itertools.cycle([file.read_bytes() for file in work.files])
    slot = np.empty_like(loaded.images[0])
    yield "find files", lambda: sum(1 for _ in Discovery((source,), None, None))
    yield "read", lambda: min(1, len(read_file(next(files))))
    yield "decode", lambda: min(1, decode_slice(next(contents), slot)[0])

    cascade = Cascade(NullRunner("classifier"), NullRunner("segmenter"), OperatingPoint(0.5, 0.5, 1))
    blocks = itertools.cycle(_blocks(loaded))
    yield "null cascade", lambda: _scored(cascade, next(blocks)).passed.size

    writer = RowWriter(out, masks=True, overlays=False)
    answers = itertools.cycle([(block, _scored(cascade, block)) for block in _blocks(loaded)])
    yield "masks and rows", lambda: len(writer.write_block(*next(answers)))

    mask = np.ascontiguousarray(cascade.segmenter.infer(loaded.images[:1])["mask"][0] * 255, np.uint8)
    numbers = itertools.count()
    yield "encode a mask", lambda: int(cv2.imencode(".png", mask)[0])
    yield "write a mask", lambda: _written(out / f"mask{next(numbers) % 10_000}.png", mask)

    with Ledger.open(out / "run.sqlite", {"benchmark": "host"}, fresh=True) as ledger:
        rows = writer.write_block(*next(answers))
        batches = iter(
            [_numbered(rows, first) for first in range(0, TRANSACTIONS * COMMIT_ROWS, COMMIT_ROWS)]
        )
        yield "commit rows", lambda: _committed(ledger, next(batches))
        for batch in batches:
            ledger.commit(batch)
        count = ledger.counts().ok
        yield "write results.csv", lambda: _tables(ledger, out, count)


def _time(name: str, work: Work, seconds: float, report: Report) -> None:
    """Do a part's work until the time is over or there is no more of it."""
    slices = work()  # the first is not timed: it makes folders, and loads what is loaded lazily
    slices, began, spent = 0, time.monotonic(), time.process_time()
    with suppress(StopIteration):
        while time.monotonic() - began < seconds:
            slices += work()
    wall, cpu = time.monotonic() - began, time.process_time() - spent
    of = {"what": "part", "part": name}
    report.rows.add(of, "rate", "slices/s", slices / wall)
    report.rows.add(of, "CPU", "us/slice", cpu / slices * 1e6)


def _blocks(loaded: Slices) -> list[DecodedBlock]:
    """The loaded slices as the ring would give them."""
    found = []
    for start in range(0, len(loaded) - BLOCK + 1, BLOCK):
        places = range(start, start + BLOCK)
        pieces = tuple(DecodedSlice(loaded.files[i], 0, *loaded.sizes[i], failure=None) for i in places)
        found.append(DecodedBlock(0, loaded.images[start : start + BLOCK], pieces))
    return found


def _scored(cascade: Cascade, block: DecodedBlock) -> Scores:
    return cascade.score(block.images, np.ones(len(block.images), np.bool_))


def _written(path: Path, mask: npt.NDArray[np.uint8]) -> int:
    write_png(os.fsencode(path), mask)
    return 1


def _numbered(rows: list[SliceRow], first: int) -> list[SliceRow]:
    """A transaction of rows that the ledger does not have yet."""
    orders = (number.to_bytes(8, "big") for number in range(first, first + COMMIT_ROWS))
    return [replace(row, order=order) for row, order in zip(itertools.cycle(rows), orders, strict=False)]


def _committed(ledger: Ledger, rows: list[SliceRow]) -> int:
    ledger.commit(rows)
    return len(rows)


def _tables(ledger: Ledger, out: Path, count: int) -> int:
    write_tables(ledger.rows(), out)
    return count


@contextmanager
def _one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _core_counts(asked: str | None) -> list[int]:
    most = len(os.sched_getaffinity(0))
    if asked is None:
        return sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most})
    counts = sorted({int(word) for word in asked.split(",")})
    if counts[0] < 1 or counts[-1] > most:
        raise UsageError(f"--cores {asked}: give numbers from 1 to {most}, which this machine has")
    return counts


def _fitting(work: WorkSet, options: Common, folder: Path, cores: list[int]) -> int:
    """How many links the pipeline scores in its share of the minutes, by a short run on all cores."""
    if options.quick:
        return 4 * QUICK_SLICES
    replicate(work.files, folder / "trial", TRIAL_SLICES, PER_FOLDER)
    out = folder / "trial-out"
    ran = child.run(
        child.Job([str(folder / "trial")], str(out), str(options.bundle.folder), null=True, batch=BATCH)
    )
    seconds = options.minutes * 60 * (1 - PARTS_SHARE) / options.repeats
    # A run on k cores takes cores[-1] / k times as long as one on all.
    seconds_on_all = seconds / sum(cores[-1] / count for count in cores)
    return max(TRIAL_SLICES, round(ran.per_second * seconds_on_all))


if __name__ == "__main__":
    run(main)
