"""TIFFs that hold a slice just as the models take it, read straight into its place.

Files of one origin mostly differ in their pixels alone. Once one is known whose pixels lie in one piece,
others of its size are read by one call: what is before the pixels, they, and what is behind, each to its
place. Where all but the pixels is as in the known file, byte for byte, so is what a decoder would make of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.sources.files import OpenFile
from engine.sources.geometry import SIDE
from engine.sources.tiff import TIFF_SIGNATURES, place_of_pixels

PIXEL_BYTES = SIDE * SIDE * 3
MOST_AROUND = 2**16
"""Bytes of a file beside its pixels; LGG's TIFFs have 6,494."""
MOST_SIZES = 256
MOST_MISSES = 3
"""Files in turn that only looked like the known one, until their size is given up."""


@dataclass(slots=True)
class _Known:
    before: bytes
    behind: bytes
    misses: int = 0


@dataclass(slots=True)
class PlainTiffs:
    """What such files look like, by their size; None is a size that is not worth a try. For one thread."""

    _known: dict[int, _Known | None] = field(default_factory=dict)

    def read(self, file: OpenFile, out: npt.NDArray[np.uint8]) -> bool:
        """Read a file that looks like a known one into `out` [256,256,3] RGB; `out` holds anything if False.

        Raises OSError.
        """
        known = self._known.get(file.size)
        if known is None:
            return False
        before, behind = bytearray(len(known.before)), bytearray(len(known.behind))
        count = os.preadv(file.descriptor, [before, out.data, behind], 0)
        if count == file.size and before == known.before and behind == known.behind:
            known.misses = 0
            return True
        known.misses += 1
        if known.misses == MOST_MISSES:
            self._known[file.size] = None
        return False

    def learn(self, data: bytes) -> None:
        """Remember what this file, which was decoded, looks like, if others like it can be read by `read`."""
        size = len(data)
        if not 0 <= size - PIXEL_BYTES <= MOST_AROUND:
            return
        if size in self._known or len(self._known) == MOST_SIZES:
            return
        at = place_of_pixels(data, SIDE, SIDE) if data.startswith(TIFF_SIGNATURES) else None
        self._known[size] = None if at is None else _Known(data[:at], data[at + PIXEL_BYTES :])
