"""How fast this machine scores: both models alone, from RAM, and from disk to disk, always together.

Runner only is both models on slices that lie in memory, by as many callers as a run has, with the gate's own
outcome: what the pipeline can at best reach. From RAM adds masks, rows and the ledger, disk to disk reading
and decoding. `tumorscan bench` prints all three; the programs in benchmarks/ stand on the functions here.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, cast

import numpy as np

from engine.cascade import Cascade
from engine.errors import SliceError, TumorscanError, UsageError
from engine.ledger import Ledger
from engine.pipeline import WRITERS, Pipeline
from engine.ring import DecodedBlock, DecodedSlice, Ring
from engine.rows import RowWriter
from engine.run import Options, Plan
from engine.runners.base import SIDE, Images
from engine.score import LEDGER, open_models, score, scorers, survey
from engine.sources.discovery import Discovery, SourceFile
from engine.sources.files import read_file
from engine.sources.read import decode_slice
from engine.text import shown

PRECISIONS: Final = ("fp32", "bf16")
"""Values of --precision that are tried where none is named."""
MOST_SLICES = 2048
"""Decoded slices that are held: 400 MB."""
_TRIAL_SECONDS = 1.0
_RATES = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Slices:
    """Slices that lie in memory: file i, of `sizes[i]` (height, width), is decoded into `images[i]`."""

    files: tuple[SourceFile, ...]
    sizes: tuple[tuple[int, int], ...]
    images: Images

    def __len__(self) -> int:
        return len(self.files)

    @property
    def bytes_on_disk(self) -> int:
        """What the files hold together."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Timed:
    """So many slices in so many seconds; `passed` of them went to the segmenter."""

    slices: int
    seconds: float
    passed: int
    has_mask: int

    @property
    def per_second(self) -> float:
        """Slices a second."""
        return self.slices / self.seconds


@dataclass(frozen=True, slots=True)
class Rates:
    """The three rates on the same slices; `asked` is the value of --precision, `plan` what came of it."""

    asked: str
    plan: Plan
    runner_only: Timed
    from_ram: Timed
    disk_to_disk: Timed


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure. `options` name input, bundle, backend, batch and workers; `out` is not written to.

    `precisions` are tried in turn, those that this machine or bundle lacks are left out; None tries all.
    `seconds` is about what the whole may take, `scratch` a folder for outputs that are deleted again.
    """

    options: Options
    precisions: tuple[str, ...] | None = None
    seconds: float = 60.0
    scratch: Path | None = None


@dataclass(slots=True)
class Measured:
    """What was measured, on how many slices of how many bytes, and what was left out with the reason."""

    slices: int = 0
    size: int = 0
    rates: list[Rates] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def measure(request: Request, say: Say = lambda _: None) -> Measured:
    """The three rates at each precision that can be had.

    Raises:
        UsageError: no slices, wrong options, or nothing that can be measured.
        MachineError: no runtime, space or permission.
    """
    measured = Measured()
    with tempfile.TemporaryDirectory(prefix="tumorscan-bench-", dir=request.scratch) as folder:
        scratch = Path(folder)
        plans = _plans(request, scratch, measured.left_out)
        say("trying out")
        count = min(_enough(request, plans), request.options.limit or MOST_SLICES, MOST_SLICES)
        slices = load_slices(request.options, count)
        measured.slices, measured.size = len(slices), slices.bytes_on_disk
        for asked, plan in plans.items():
            options = replace(request.options, limit=count, precision=asked)
            measured.rates.append(three_rates(options, plan, slices, scratch / asked, say))
    return measured


def three_rates(options: Options, plan: Plan, slices: Slices, scratch: Path, say: Say) -> Rates:
    """One measurement of each, one behind the other, by the plan that `options` stand for."""
    asked = options.precision
    callers = scorers(plan)
    with open_models(plan) as cascade:
        say(f"{asked}: runner only")
        warm_up(cascade, slices.images, options.batch, callers)
        runner = runner_only(cascade, slices.images, batch=options.batch, callers=callers)
        say(f"{asked}: from RAM")
        ram = from_ram(cascade, slices, scratch / "ram", batch=options.batch, callers=callers)
    say(f"{asked}: disk to disk")
    disk = disk_to_disk(replace(options, out=scratch / "disk", fresh=True))
    return Rates(asked, plan, runner, ram, disk)


def runner_only(cascade: Cascade, images: Images, *, batch: int, callers: int) -> Timed:
    """Both models on `images` [n,256,256,3], `batch` slices a call, by so many callers at a time."""

    def work(start: int) -> tuple[int, int]:
        piece = images[start : start + batch]
        scores = cascade.score(piece, np.ones(len(piece), np.bool_))
        return int(scores.passed.sum()), int(scores.has_mask.sum())

    with ThreadPoolExecutor(callers) as pool:
        began = time.monotonic()
        counts = list(pool.map(work, range(0, len(images), batch)))
        seconds = time.monotonic() - began
    passed, has_mask = (sum(column) for column in zip(*counts, strict=True))
    return Timed(len(images), seconds, passed, has_mask)


def warm_up(cascade: Cascade, images: Images, batch: int, callers: int) -> None:
    """Have every caller score a block, and both models at least one slice, before anything is timed."""
    runner_only(cascade, images[: batch * callers], batch=batch, callers=callers)
    cascade.segmenter.infer(images[:1])


def from_ram(cascade: Cascade, slices: Slices, out: Path, *, batch: int, callers: int) -> Timed:
    """The pipeline on slices that are decoded already: models, masks, rows and the ledger, into `out`."""
    blocks = callers + WRITERS + 1
    with Ledger.open(out / LEDGER, {"benchmark": "from RAM"}, fresh=True) as ledger:
        totals = Pipeline(
            entries=iter(slices.files),
            ring=cast("Ring", RamRing(slices, blocks, batch)),
            cascade=cascade,
            writer=RowWriter(out, masks=True, overlays=False),
            ledger=ledger,
            block_size=batch,
            scorers=callers,
            stop=threading.Event(),
            on_tick=lambda _: None,
        ).run()
        ended_at_gate = _ended_at_gate(cascade, ledger)
    return Timed(totals.slices, totals.seconds, totals.ok - ended_at_gate, totals.has_mask)


def disk_to_disk(options: Options) -> Timed:
    """A run of `tumorscan score`, timed as its run.json is: first slice read to last row committed."""
    outcome = score(options)
    totals = outcome.totals
    return Timed(totals.slices, totals.seconds, totals.ok - outcome.gated_out, totals.has_mask)


class RamRing:
    """Stands where the ring does, and has every block decoded from the start: `images` is never copied.

    Files must be submitted in their order and, but for the last, in whole blocks.
    """

    def __init__(self, slices: Slices, blocks: int, block_size: int) -> None:
        self._slices = slices
        self._block_size = block_size
        self._next = 0
        self._free = deque(range(blocks))
        self._done: deque[DecodedBlock] = deque()
        self._state = threading.Condition()

    def acquire(self, timeout: float) -> int | None:
        """See `Ring.acquire`."""
        with self._state:
            self._state.wait_for(lambda: self._free, timeout)
            return self._free.popleft() if self._free else None

    def submit(self, block: int, files: Sequence[SourceFile]) -> None:
        """See `Ring.submit`."""
        with self._state:
            start, self._next = self._next, self._next + len(files)
            pieces = tuple(
                DecodedSlice(file, 0, *self._slices.sizes[start + place], failure=None)
                for place, file in enumerate(files)
            )
            images = self._slices.images[start : start + self._block_size]
            self._done.append(DecodedBlock(block, images, pieces))
            self._state.notify_all()

    def completed(self, timeout: float) -> DecodedBlock | None:
        """See `Ring.completed`."""
        with self._state:
            self._state.wait_for(lambda: self._done, timeout)
            return self._done.popleft() if self._done else None

    def release(self, block: int) -> None:
        """See `Ring.release`."""
        with self._state:
            self._free.append(block)
            self._state.notify_all()


def load_slices(options: Options, count: int) -> Slices:
    """Decode the first `count` files of the input; those that cannot be are left out. UsageError for none."""
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    files: list[SourceFile] = []
    sizes: list[tuple[int, int]] = []
    for _, entry in zip(range(count), Discovery(options.inputs, None, None), strict=False):
        if not isinstance(entry, SourceFile):
            continue
        try:
            sizes.append(decode_slice(read_file(entry.path), images[len(files)]))
        except SliceError:
            continue
        files.append(entry)
    if not files:
        where = ", ".join(map(shown, options.inputs))
        raise UsageError(f"no slices in {where}: give a folder with .tif, .png, .jpg or .webp files")
    return Slices(tuple(files), tuple(sizes), images[: len(files)])


def _plans(request: Request, scratch: Path, left_out: dict[str, str]) -> dict[str, Plan]:
    """A plan for each precision whose models open here; the reason for each that does not."""
    plans = {}
    refused: TumorscanError | None = None
    for precision in request.precisions or PRECISIONS:
        options = replace(request.options, precision=precision, out=scratch / "none", limit=1)
        try:
            plan = survey(options).plan
            with open_models(plan):
                plans[precision] = plan
        except TumorscanError as error:
            refused = refused or error
            left_out[precision] = str(error)
    if not plans and refused is not None:
        raise refused
    return plans


def _enough(request: Request, plans: Mapping[str, Plan]) -> int:
    """How many slices fill the time, by the rate of the first precision, which is the slowest."""
    first = next(iter(plans.values()))
    batch, callers = request.options.batch, scorers(first)
    slices = load_slices(request.options, 4 * batch * callers)
    with open_models(first) as cascade:
        warm_up(cascade, slices.images, batch, callers)
        rounds, began = 0, time.monotonic()
        while time.monotonic() - began < _TRIAL_SECONDS:
            runner_only(cascade, slices.images, batch=batch, callers=callers)
            rounds += 1
        rate = rounds * len(slices) / (time.monotonic() - began)
    return max(2 * batch * callers, round(rate * request.seconds / (_RATES * len(plans))))


def _ended_at_gate(cascade: Cascade, ledger: Ledger) -> int:
    return ledger.below(cascade.operating.gate_threshold) if cascade.operating.gated else 0
