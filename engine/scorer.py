"""What scores the ring's blocks, as the pipeline knows it: the cascade on the host, or lanes on GPUs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from engine.cascade import Cascade, OperatingPoint, Scores
from engine.errors import MachineError, TumorscanError, UsageError
from engine.flips import NO_FLIPS
from engine.ring import DecodedBlock

if TYPE_CHECKING:
    from engine.gpu.process import GpuProcess
    from engine.gpu.results import Results


class Scorer(Protocol):
    """Scores blocks, `seats` at a time; opening and closing what it stands on is its maker's."""

    @property
    def seats(self) -> int:
        """How many calls are worth having in flight. More of them wait for each other."""
        ...

    def score(self, block: DecodedBlock, valid: npt.NDArray[np.bool_], copied: Callable[[], None]) -> Scores:
        """Score the slices of a block that are `valid`, bool [n]; blocks; many threads at once.

        `copied` is called once, in the same thread, when the images are not needed any more; not when this
        raises before. Raises `TumorscanError` for a probability that is no number, `MachineError` when a GPU
        fails: the block is not scored then.
        """
        ...


@dataclass(frozen=True, slots=True)
class HostScorer:
    """The cascade in this process. It computes in the calling thread."""

    cascade: Cascade
    seats: int

    def score(self, block: DecodedBlock, valid: npt.NDArray[np.bool_], copied: Callable[[], None]) -> Scores:
        """See `Scorer.score`."""
        scores = self.cascade.score(block.images[: len(valid)], valid)
        copied()
        return scores


class GpuScorer:
    """One process a GPU, ready and open on the ring that the blocks are of; all with batches of a block.

    A seat that is done takes the next block, so that a faster GPU takes more of them. A GPU that fails while
    another is left is told to `lost`, and what it had is scored by the others: several keep the images of a
    block until it is scored.
    """

    def __init__(
        self,
        processes: Sequence[GpuProcess],
        operating: OperatingPoint,
        lost: Callable[[GpuProcess, MachineError], None] = lambda *_: None,
    ) -> None:
        self._operating = operating
        self._lost = lost
        self._keeps = len(processes) > 1
        self._left = list(processes)
        self._failure: MachineError | None = None
        places = zip_longest(*([(process, seat) for seat in range(process.seats)] for process in processes))
        self._free = deque(place for place in chain.from_iterable(places) if place is not None)
        self._state = threading.Condition()
        self.seats = len(self._free)

    def score(self, block: DecodedBlock, valid: npt.NDArray[np.bool_], copied: Callable[[], None]) -> Scores:
        """See `Scorer.score`."""
        while True:
            process, seat = self._take()
            try:
                first = block.block * process.start.batch
                results = process.score(seat, first, valid, _nothing if self._keeps else copied)
                scores = self._scores(process, results, valid)
            except MachineError as error:
                self._lose(process, error)
                continue
            finally:
                self._give_back(process, seat)
            if self._keeps:
                copied()
            return scores

    def _take(self) -> tuple[GpuProcess, int]:
        with self._state:
            self._state.wait_for(lambda: self._free or self._failure)
            if self._failure is not None:
                raise self._failure
            return self._free.popleft()

    def _give_back(self, process: GpuProcess, seat: int) -> None:
        with self._state:
            if process in self._left:
                self._free.append((process, seat))
                self._state.notify()

    def _lose(self, process: GpuProcess, error: MachineError) -> None:
        """Do without a GPU that failed. Raises its error where no other is left to take its place."""
        with self._state:
            last = self._left == [process] or not self._left
            if last:
                self._failure = self._failure or error
                self._state.notify_all()
            if process in self._left:
                self._left.remove(process)
                self._free = deque(place for place in self._free if place[0] is not process)
                if not last:
                    self._lost(process, error)
        if last or not self._keeps:
            raise error

    def _scores(self, process: GpuProcess, results: Results, valid: npt.NDArray[np.bool_]) -> Scores:
        if not np.isfinite(results.probability[valid]).all():
            raise TumorscanError(
                f"the classifier gave a tumour probability that is not a number (GPU "
                f"{process.start.device}): try another --backend or another --bundle"
            )
        has_mask = results.passed & (results.pixels >= max(1, self._operating.min_pixels))
        return Scores(
            results.probability.copy(),
            results.passed.copy(),
            has_mask,
            results.pixels.copy(),
            {int(i): np.unpackbits(results.bits[i], axis=-1) for i in np.flatnonzero(has_mask)},
        )


def _nothing() -> None:
    """Who keeps the images has nothing to do when they are copied."""


def gate_for_gpu(operating: OperatingPoint) -> float | None:
    """The gate that lanes work with. UsageError for what needs more of the segmenter than masks."""
    if operating.flips != NO_FLIPS:
        raise UsageError(
            f"--flips {operating.flips.mirrors}: a GPU scores each slice as it is; leave it out, or use "
            "--backend openvino"
        )
    if not operating.exact_mask:
        raise UsageError(
            f"--mask-threshold {operating.mask_threshold:g}: a GPU cuts masks at the bundle's own threshold "
            "alone; leave it out, or use --backend openvino"
        )
    if operating.probabilities:
        raise UsageError("--save-probabilities is the CPU's: leave it out, or use --backend openvino")
    return operating.gate_threshold if operating.gated else None
