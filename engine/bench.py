"""How fast this machine scores: both models alone, from RAM, and from disk to disk, always together.

Runner only is both models on slices that lie in memory, by as many callers as a run has, with the gate's own
outcome: what the pipeline can at best reach. On a GPU that memory is the host's, as in a run, so that it
holds the way of the slices to the GPU. From RAM adds masks, rows and the ledger, disk to disk reading and
decoding. `tumorscan bench` prints all three; the programs in benchmarks/ stand on the functions here.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, cast

import numpy as np

from engine.cascade import OperatingPoint
from engine.errors import SliceError, TumorscanError, UsageError
from engine.ledger import Ledger
from engine.opening import open_models, scorers
from engine.pipeline import WRITERS, Pipeline
from engine.ring import DecodedBlock, DecodedSlice, Ring
from engine.rows import RowWriter
from engine.run import LEDGER, PROOF_SLICES, Options, Plan
from engine.runners.base import SIDE, Images
from engine.scorer import HostScorer, Scorer
from engine.scoring import Watcher, score, survey
from engine.settle import with_devices
from engine.sources.discovery import Discovery, SourceFile
from engine.sources.reader import VolumeReader
from engine.stop import Stop
from engine.text import shown

PRECISIONS: Final = ("fp32", "bf16", "int8")
"""Values of --precision that are tried on the CPU where none is named."""
MOST_SLICES = 2048
"""Decoded slices that are held: 400 MB."""
_TRIAL_SECONDS = 1.0
_RATES = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Slices:
    """Slices that lie in memory: file i, of `sizes[i]` (height, width), is decoded into `images[i]`.

    `descriptor` is the memory's, for processes that read it; it begins with `images[0]`.
    """

    files: tuple[SourceFile, ...]
    sizes: tuple[tuple[int, int], ...]
    images: Images
    descriptor: int

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
    """The three rates on the same slices; `asked` is the value of --precision, `plan` what came of it.

    `batch` are the slices of a call.
    """

    asked: str
    plan: Plan
    batch: int
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
        count = min(_enough(request, plans, say), request.options.limit or MOST_SLICES, MOST_SLICES)
        slices = load_slices(request.options, count)
        measured.slices, measured.size = len(slices), slices.bytes_on_disk
        for asked, plan in plans.items():
            options = replace(request.options, limit=count, precision=asked)
            measured.rates.append(three_rates(options, plan, slices, scratch / asked, say))
    return measured


def three_rates(options: Options, plan: Plan, slices: Slices, scratch: Path, say: Say) -> Rates:
    """One measurement of each, one behind the other, by the plan that `options` stand for."""
    asked = options.precision
    with open_scorer(plan, slices, say) as (scorer, batch):
        say(f"{asked}: runner only")
        warm_up(scorer, slices, batch)
        runner = runner_only(scorer, slices, batch)
        say(f"{asked}: from RAM")
        ram = from_ram(scorer, slices, scratch / "ram", batch, plan.operating)
    say(f"{asked}: disk to disk")
    disk = disk_to_disk(replace(options, out=scratch / "disk", fresh=True))
    return Rates(asked, plan, batch, runner, ram, disk)


@contextmanager
def open_scorer(plan: Plan, slices: Slices, say: Say) -> Iterator[tuple[Scorer, int]]:
    """What a run of this plan scores with, on `slices`, and the slices of a batch. Raises what a run does."""
    if plan.gpus is None:
        with open_models(plan) as cascade:
            yield HostScorer(cascade, scorers(plan)), plan.batch
        return
    from engine.on_gpus import open_on_gpus

    paths = [file.path for file in slices.files[:PROOF_SLICES]]
    with open_on_gpus(plan, paths, _Said(say), Stop()) as gpus:
        yield gpus.scorer(slices.descriptor, len(slices)), gpus.batch


class _Said(Watcher):
    """Passes on what is said while GPUs come up."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def prepares(self, text: str, done: float | None) -> None:
        """See `Watcher.prepares`."""
        self._say(text if done is None else f"{text} ({done:.0%})")

    def says(self, line: str) -> None:
        """See `Watcher.says`."""
        self._say(line)


def runner_only(scorer: Scorer, slices: Slices, batch: int, count: int | None = None) -> Timed:
    """Both models on the first `count` slices (None: all), `batch` a call, by as many callers as it seats."""
    images = slices.images[:count]

    def work(block: int) -> tuple[int, int]:
        piece = images[block * batch : (block + 1) * batch]
        decoded = DecodedBlock(block, piece, ())
        scores = scorer.score(decoded, np.ones(len(piece), np.bool_), lambda: None)
        return int(scores.passed.sum()), int(scores.has_mask.sum())

    with ThreadPoolExecutor(scorer.seats) as pool:
        began = time.monotonic()
        counts = list(pool.map(work, range(-(-len(images) // batch))))
        seconds = time.monotonic() - began
    passed, has_mask = (sum(column) for column in zip(*counts, strict=True))
    return Timed(len(images), seconds, passed, has_mask)


def warm_up(scorer: Scorer, slices: Slices, batch: int) -> None:
    """Have every caller score a block, and both models at least one slice, before anything is timed."""
    runner_only(scorer, slices, batch, batch * scorer.seats)
    if isinstance(scorer, HostScorer):
        scorer.cascade.segmenter.infer(slices.images[:1])


def from_ram(scorer: Scorer, slices: Slices, out: Path, batch: int, operating: OperatingPoint) -> Timed:
    """The pipeline on slices that are decoded already: models, masks, rows and the ledger, into `out`."""
    blocks = scorer.seats + WRITERS + 1
    with Ledger.open(out / LEDGER, {"benchmark": "from RAM"}, fresh=True) as ledger:
        totals = Pipeline(
            entries=iter(slices.files),
            ring=cast("Ring", RamRing(slices, blocks, batch)),
            scorer=scorer,
            writer=RowWriter(out, masks=True, overlays=False),
            ledger=ledger,
            block_size=batch,
            stop=threading.Event(),
            on_tick=lambda _: None,
        ).run()
        ended_at_gate = ledger.below(operating.gate_threshold) if operating.gated else 0
    return Timed(totals.slices, totals.seconds, totals.ok - ended_at_gate, totals.has_mask)


def disk_to_disk(options: Options) -> Timed:
    """A run of `tumorscan score`, timed as its run.json is: first slice read to last row committed."""
    outcome = score(options)
    totals = outcome.totals
    return Timed(totals.slices, totals.seconds, totals.ok - outcome.gated_out, totals.has_mask)


class RamRing:
    """Stands where the ring does, and has every block decoded from the start: `images` is never copied.

    Block k holds slices k times the block's size and on: each is given out once, with `blocks` of them on
    their way at a time, and files are submitted to them in their order.
    """

    def __init__(self, slices: Slices, blocks: int, block_size: int) -> None:
        self._slices = slices
        self._block_size = block_size
        self._next = 0
        self._free = blocks
        self._done: deque[DecodedBlock] = deque()
        self._state = threading.Condition()

    def acquire(self, timeout: float) -> int | None:
        """See `Ring.acquire`."""
        with self._state:
            self._state.wait_for(lambda: self._free, timeout)
            if not self._free:
                return None
            self._free -= 1
            self._next += 1
            return self._next - 1

    def submit(self, block: int, files: Sequence[SourceFile]) -> None:
        """See `Ring.submit`."""
        start = block * self._block_size
        pieces = tuple(
            DecodedSlice(file, file.slice, *self._slices.sizes[start + place], failure=None)
            for place, file in enumerate(files)
        )
        images = self._slices.images[start : start + self._block_size]
        with self._state:
            self._done.append(DecodedBlock(block, images, pieces))
            self._state.notify_all()

    def completed(self, timeout: float) -> DecodedBlock | None:
        """See `Ring.completed`."""
        with self._state:
            self._state.wait_for(lambda: self._done, timeout)
            return self._done.popleft() if self._done else None

    def release(self, block: int) -> None:
        """See `Ring.release`."""
        del block
        with self._state:
            self._free += 1
            self._state.notify_all()


def load_slices(options: Options, count: int) -> Slices:
    """Decode the first `count` files of the input; those that cannot be are left out. UsageError for none."""
    images, descriptor = _memory(count)
    files: list[SourceFile] = []
    sizes: list[tuple[int, int]] = []
    volumes = VolumeReader()
    for _, entry in zip(range(count), Discovery(options.inputs, None, None), strict=False):
        if not isinstance(entry, SourceFile):
            continue
        try:
            sizes.append(volumes.decode(entry, images[len(files)]))
        except SliceError:
            continue
        files.append(entry)
    if not files:
        where = ", ".join(map(shown, options.inputs))
        raise UsageError(f"no slices in {where}: give a folder with .tif, .png, .jpg or .webp files")
    return Slices(tuple(files), tuple(sizes), images[: len(files)], descriptor)


def _memory(count: int) -> tuple[Images, int]:
    """Room for `count` slices, uint8 [count,256,256,3], and a descriptor that lives as long as that."""
    descriptor = os.memfd_create("tumorscan-bench", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, count * SIDE * SIDE * 3)
    mapping = mmap.mmap(descriptor, 0)
    images = np.frombuffer(mapping, np.uint8).reshape(count, SIDE, SIDE, 3)
    weakref.finalize(mapping, os.close, descriptor)
    return images, descriptor


def _plans(request: Request, scratch: Path, left_out: dict[str, str]) -> dict[str, Plan]:
    """A plan for each precision that a run would use here; the reason for each that cannot be had."""
    plans = {}
    refused: TumorscanError | None = None
    for precision in request.precisions or _precisions(request):
        options = replace(request.options, precision=precision, out=scratch / "none", limit=1)
        try:
            plan = survey(options).plan
            if plan.gpus is None:
                with open_models(plan):
                    plans[precision] = plan
            else:
                plans[precision] = replace(plan, gpus=with_devices(options, plan.gpus))
        except TumorscanError as error:
            refused = refused or error
            left_out[precision] = str(error)
    if not plans and refused is not None:
        raise refused
    return plans


def _precisions(request: Request) -> tuple[str, ...]:
    """What a GPU computes in, where the backend is one; else all that the CPU may have."""
    gpus = survey(replace(request.options, precision="auto", limit=1)).plan.gpus
    return PRECISIONS if gpus is None else ("fp16",)


def _enough(request: Request, plans: Mapping[str, Plan], say: Say) -> int:
    """How many slices fill the time, by the rate of the first precision, which is the slowest."""
    first = next(iter(plans.values()))
    if first.gpus is not None:  # which have scored all of them before any time is over
        return MOST_SLICES
    batch, callers = first.batch, scorers(first)
    slices = load_slices(request.options, 4 * batch * callers)
    with open_scorer(first, slices, say) as (scorer, _):
        warm_up(scorer, slices, batch)
        rounds, began = 0, time.monotonic()
        while time.monotonic() - began < _TRIAL_SECONDS:
            runner_only(scorer, slices, batch)
            rounds += 1
        rate = rounds * len(slices) / (time.monotonic() - began)
    return max(2 * batch * callers, round(rate * request.seconds / (_RATES * len(plans))))
