"""What scores the ring's blocks, as the pipeline knows it: the cascade on the host, or lanes on GPUs."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.cascade import Cascade, OperatingPoint, Scores
from engine.errors import TumorscanError, UsageError
from engine.gpu.process import GpuProcess
from engine.ring import DecodedBlock


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

    A seat that is done takes the next block, so that a faster GPU takes more of them.
    """

    def __init__(self, processes: Sequence[GpuProcess], operating: OperatingPoint) -> None:
        self._operating = operating
        self._free: queue.SimpleQueue[tuple[GpuProcess, int]] = queue.SimpleQueue()
        places = zip_longest(*([(process, seat) for seat in range(process.seats)] for process in processes))
        for place in chain.from_iterable(places):
            if place is not None:
                self._free.put(place)
        self.seats = sum(process.seats for process in processes)

    def score(self, block: DecodedBlock, valid: npt.NDArray[np.bool_], copied: Callable[[], None]) -> Scores:
        """See `Scorer.score`."""
        process, seat = self._free.get()
        try:
            first = block.block * process.start.batch
            results = process.score(seat, first, valid, copied)
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
        finally:
            self._free.put((process, seat))


def gate_for_gpu(operating: OperatingPoint) -> float | None:
    """The gate that lanes work with. UsageError for a mask threshold that is not the bundle's."""
    if not operating.exact_mask:
        raise UsageError(
            f"--mask-threshold {operating.mask_threshold:g}: a GPU cuts masks at the bundle's own threshold "
            "alone; leave it out, or use --backend openvino"
        )
    return operating.gate_threshold if operating.gated else None
