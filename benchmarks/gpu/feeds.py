"""The lanes fed by the host: from slices that lie in memory, with masks and rows behind them, from files."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final, cast

import numpy as np

from benchmarks.gpu import doubled, paced
from benchmarks.gpu.alone import Rate
from benchmarks.gpu.data import Resident, entries
from benchmarks.gpu.models import RUNTIMES, Kind, bundle_of, what_to_load
from benchmarks.gpu.settings import GPU, Settings
from benchmarks.gpu.told import Told
from engine.cascade import OperatingPoint
from engine.gpu.process import WORKER, GpuProcess
from engine.gpu.start import Start
from engine.ledger import Ledger
from engine.pipeline import WRITERS, Pipeline
from engine.ring import DecodedBlock, DecodedSlice, Ring
from engine.rows import RowWriter
from engine.runners.base import SIDE
from engine.scorer import GpuScorer, Scorer, gate_for_gpu
from engine.sources.discovery import Discovery, SourceFile, Unlisted

FILE_TIMEOUT: Final = 60.0
SPARE: Final = 4
"""Ring blocks beyond those that scorers, writers and workers have."""


@dataclass(frozen=True, slots=True)
class Fed:
    """What came of a feed."""

    rate: Rate
    passed: int
    has_mask: int


@dataclass(frozen=True, slots=True)
class Laned:
    """A runtime's process that is ready; `refused` is the driver's error of registering the ring, 0: none."""

    kind: Kind
    lanes: int
    scorer: Scorer
    refused: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """A runtime with so many lanes of that batch."""

    kind: Kind
    lanes: int
    batch: int


@contextmanager
def open_laned(
    wanted: list[Wanted], settings: Settings, told: Told, memory: Resident | Ring
) -> Iterator[dict[Wanted, Laned]]:
    """Those of the processes that come up, on one memory; the others are named."""
    point = OperatingPoint.of(bundle_of(settings))
    with ExitStack() as stack:
        started: dict[Wanted, GpuProcess] = {}
        for each in wanted:
            with told.left_out(RUNTIMES[each.kind].title):
                started[each] = stack.enter_context(_started(each, settings, point))
        ready: dict[Wanted, Laned] = {}
        for each, process in started.items():
            with told.left_out(f"{RUNTIMES[each.kind].title}, {each.lanes} lanes of {each.batch}"):
                process.ready()
                slots = len(memory.images) if isinstance(memory, Resident) else memory.slots
                refused = process.open(memory.descriptor, slots)
                ready[each] = Laned(each.kind, each.lanes, GpuScorer([process], point), refused)
        yield ready


def into_lanes(scorer: Scorer, memory: Resident, seconds: float) -> Fed:
    """Slices that lie in the ring's memory, scored; nothing is written. For about `seconds`."""
    valid = np.ones(memory.batch, np.bool_)
    numbers, deadline = count(), time.monotonic() + seconds
    turn = threading.Lock()

    def work() -> tuple[int, int, int]:
        slices = passed = has_mask = 0
        while slices == 0 or time.monotonic() < deadline:
            with turn:
                place = next(numbers) % memory.blocks
            scores = scorer.score(DecodedBlock(place, memory.block(place), ()), valid, lambda: None)
            slices += memory.batch
            passed += int(scores.passed.sum())
            has_mask += int(scores.has_mask.sum())
        return slices, passed, has_mask

    with ThreadPoolExecutor(scorer.seats) as pool:
        began = time.monotonic()
        found = [each.result() for each in [pool.submit(work) for _ in range(scorer.seats)]]
        spent = time.monotonic() - began
    slices, passed, has_mask = (sum(column) for column in zip(*found, strict=True))
    return Fed(Rate(slices, spent), passed, has_mask)


def from_ram(scorer: Scorer, memory: Resident, out: Path, slices: int) -> Fed:
    """The whole pipeline behind decoding: `slices` slices of the memory to masks and committed rows."""
    ring = ResidentRing(memory, scorer.seats + WRITERS + SPARE)
    return _piped(entries(slices), cast("Ring", ring), scorer, out, memory.batch)


def from_disk(files: Path, ring: Ring, scorer: Scorer, out: Path, batch: int) -> Fed:
    """The same with reading and decoding: all slices below a folder."""
    return _piped(iter(Discovery((str(files),), None, None)), ring, scorer, out, batch)


@contextmanager
def open_ring(settings: Settings, lanes: int) -> Iterator[Ring]:
    """A ring as a run has it, for lanes of the settings' batch."""
    from engine.gpu.lane import SEATS

    blocks = lanes * SEATS + WRITERS + settings.workers + SPARE
    with Ring(
        blocks=blocks, block_size=settings.batch, workers=settings.workers, timeout_s=FILE_TIMEOUT
    ) as ring:
        yield ring


def _piped(files: Iterator[SourceFile | Unlisted], ring: Ring, scorer: Scorer, out: Path, batch: int) -> Fed:
    out.mkdir(parents=True)
    try:
        with Ledger.open(out / "run.sqlite", {"benchmark": "gpu_check"}, fresh=True) as ledger:
            totals = Pipeline(
                entries=files,
                ring=ring,
                scorer=scorer,
                writer=RowWriter(out, masks=True, overlays=False),
                ledger=ledger,
                block_size=batch,
                stop=threading.Event(),
                on_tick=lambda _: None,
            ).run()
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return Fed(Rate(totals.slices, totals.seconds), 0, totals.has_mask)


def _started(wanted: Wanted, settings: Settings, point: OperatingPoint) -> GpuProcess:
    models = what_to_load(wanted.kind, settings, wanted.batch)
    start = Start(GPU, wanted.lanes, wanted.batch, gate_for_gpu(point), models)
    if wanted.kind == "paced":
        return GpuProcess(start, module=paced.MODULE)
    return GpuProcess(start, module=doubled.MODULE if settings.dry else WORKER)


class ResidentRing:
    """Stands where the ring does, and has every block decoded from the start, where the lanes can read it.

    Files must be submitted in their order and, but for the last, in whole blocks.
    """

    def __init__(self, memory: Resident, blocks: int) -> None:
        self._memory = memory
        self._state = threading.Condition()
        self._free = blocks
        self._next = 0
        self._done: list[DecodedBlock] = []

    def acquire(self, timeout: float) -> int | None:
        """See `Ring.acquire`."""
        with self._state:
            self._state.wait_for(lambda: self._free, timeout)
            if not self._free:
                return None
            self._free -= 1
            return 0

    def submit(self, block: int, files: list[SourceFile]) -> None:
        """See `Ring.submit`; where the block lies is settled here."""
        del block
        with self._state:
            place, self._next = self._next % self._memory.blocks, self._next + 1
            pieces = tuple(DecodedSlice(file, 0, SIDE, SIDE, failure=None) for file in files)
            self._done.append(DecodedBlock(place, self._memory.block(place), pieces))
            self._state.notify_all()

    def completed(self, timeout: float) -> DecodedBlock | None:
        """See `Ring.completed`."""
        with self._state:
            self._state.wait_for(lambda: self._done, timeout)
            return self._done.pop(0) if self._done else None

    def release(self, block: int) -> None:
        """See `Ring.release`."""
        del block
        with self._state:
            self._free += 1
            self._state.notify_all()
