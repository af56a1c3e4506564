"""Where a GPU's process leaves what it found, and its parent reads it: shared memory, a seat a block."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from engine.errors import MachineError
from engine.runners.base import SIDE

_FIELDS: Final[tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]] = (
    (np.dtype(np.uint8), (SIDE, SIDE // 8)),
    (np.dtype(np.float32), ()),
    (np.dtype(np.int32), ()),
    (np.dtype(np.bool_), ()),
    (np.dtype(np.bool_), ()),
)
"""Types and shapes of the fields of Results. One behind the other, each stays aligned to its own size."""


@dataclass(frozen=True, slots=True)
class Results:
    """What is said of the n slices of a block; of several seats, all arrays have these before n.

    `valid` is the parent's: the slices to score. For these `probability` is the classifier's, NaN for others;
    `passed` those that went to the segmenter; for these `bits` [n,256,32] is the mask, np.packbits along x,
    and `pixels` counts it. `pixels` is 0 for the others, whose `bits` hold anything.
    """

    bits: npt.NDArray[np.uint8]
    probability: npt.NDArray[np.float32]
    pixels: npt.NDArray[np.int32]
    valid: npt.NDArray[np.bool_]
    passed: npt.NDArray[np.bool_]

    @classmethod
    def map(cls, descriptor: int, seats: int, batch: int) -> Self:
        """The memory behind `descriptor` (see `allocate_results`), mapped while one of its arrays lives."""
        mapping = mmap.mmap(descriptor, _size(seats, batch))
        arrays: list[npt.NDArray[Any]] = []
        offset = 0
        for dtype, inner in _FIELDS:
            shape = (seats, batch, *inner)
            array = np.frombuffer(mapping, dtype, int(np.prod(shape)), offset).reshape(shape)
            arrays.append(array)
            offset += array.nbytes
        return cls(*arrays)

    def seat(self, number: int, slices: int) -> Self:
        """The first so many slices of a seat, as views."""
        fields: list[npt.NDArray[Any]] = [self.bits, self.probability, self.pixels, self.valid, self.passed]
        return type(self)(*(array[number, :slices] for array in fields))


def allocate_results(seats: int, batch: int) -> int:
    """The descriptor of memory for so many seats of `batch` slices. MachineError when there is too little."""
    descriptor = os.memfd_create("tumorscan-results", os.MFD_CLOEXEC)
    size = _size(seats, batch)
    try:
        # Said now, too little memory is an error; said by the first touch, it is a SIGBUS.
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.close(descriptor)
        raise MachineError(
            f"no {size / 2**20:,.0f} MiB of memory for results: choose a smaller --batch or fewer --lanes"
        ) from error
    return descriptor


def _size(seats: int, batch: int) -> int:
    return sum(seats * batch * dtype.itemsize * int(np.prod(inner)) for dtype, inner in _FIELDS)
