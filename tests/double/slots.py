"""The ring's memory for the double: slots that are filled, copied from and let go as in a run."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from engine.ring import DecodedBlock, Ring
from engine.runners.base import SIDE
from tests.double.double import Double
from tests.double.memory import POISON


class Slots:
    """Pageable memory of `blocks` blocks of `block_size` slots, known to the double from the start.

    `memory` uint8 [blocks,block_size,256,256,3]. A block that is released holds poison from then on, as if
    the next slice were decoded into it at once.
    """

    def __init__(self, double: Double, blocks: int, block_size: int) -> None:
        self._double = double
        # A mapping of its own, as the ring is: what malloc gives may lie below 2^32, where no int is cut.
        mapped = mmap.mmap(-1, blocks * block_size * SIDE * SIDE * 3)
        self.memory = np.frombuffer(mapped, np.uint8).reshape(blocks, block_size, SIDE, SIDE, 3)
        self.memory[...] = POISON
        double.watch(self.memory, "the ring")

    @property
    def address(self) -> int:
        """Where the memory begins."""
        address: int = self.memory.__array_interface__["data"][0]
        return address

    @property
    def nbytes(self) -> int:
        """How long it is."""
        return self.memory.nbytes

    def fill(self, block: int, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Decode uint8 [n,256,256,3] into a block, n at most its slots; a view on the whole block."""
        self._double.host_write(self.memory[block], "the slots' fill")
        filled: npt.NDArray[np.uint8] = self.memory[block]
        filled[: len(images)] = images
        return filled

    def release(self, block: int) -> None:
        """Give a block back: whatever still reads it reads something else."""
        self._double.host_write(self.memory[block], "the slots' release")
        self.memory[block] = POISON

    def close(self) -> None:
        """Unmap the memory."""
        check_unregistered(self._double, self.memory)


def check_unregistered(double: Double, memory: npt.NDArray[Any]) -> None:
    """Note memory that is unmapped while it is registered."""
    start: int = memory.__array_interface__["data"][0]
    for address, length in double.memory.registered.items():
        if address < start + memory.nbytes and start < address + length:
            double.add("refusal", "the ring is unmapped while it is registered")


@contextmanager
def watch_ring(double: Double, ring: Ring) -> Iterator[None]:
    """Let the double see a real ring: its blocks are written until they are completed and once released."""
    slots = ring._mapped().slots
    double.watch(slots, "the ring")
    completed, release, close = ring.completed, ring.release, ring.close

    def watched_completed(timeout: float) -> DecodedBlock | None:
        block = completed(timeout)
        if block is not None:
            double.host_write(block.images, "the ring's decoding")
        return block

    def watched_release(block: int) -> None:
        double.host_write(ring._images(block), "the ring's release")
        release(block)

    def watched_close() -> None:
        check_unregistered(double, slots)
        close()

    with (
        mock.patch.object(ring, "completed", watched_completed),
        mock.patch.object(ring, "release", watched_release),
        mock.patch.object(ring, "close", watched_close),
    ):
        yield
