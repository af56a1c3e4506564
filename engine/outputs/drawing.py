"""What becomes of a mask: a PNG file at its slice's own size, run lengths, pixels and a box."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from engine.disk import patiently
from engine.outputs.masks import box, write_mask
from engine.outputs.rle import Box, encode
from engine.sources.geometry import restore_mask

NAME_ERRORS: Final = (
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EILSEQ,
    errno.ENOTDIR,
    errno.EISDIR,
)
"""The output's file system refuses this one name; others will do."""


@dataclass(frozen=True, slots=True)
class Found:
    """A mask [256,256] of 0/1 that was found in a slice of `height` x `width`; no file without a `path`."""

    mask: npt.NDArray[np.uint8]
    height: int
    width: int
    path: bytes | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a row says of a mask, at its slice's own size: run lengths, pixels, box (x, y, width, height)."""

    rle: str
    pixels: int
    box: Box


class Drawer(Protocol):
    """Makes of masks what they become; many threads at once."""

    def draw(self, masks: Sequence[Found]) -> list[Drawn | OSError]:
        """Of each what a row says of it, or the error of its name, which is the mask's alone.

        Raises OSError where nothing can be written, MachineError where nothing can be drawn.
        """
        ...


class DrawnHere:
    """Draws in the thread that asks."""

    def draw(self, masks: Sequence[Found]) -> list[Drawn | OSError]:
        """See `Drawer.draw`."""
        return [_draw(each) for each in masks]


def drawn(mask: npt.NDArray[np.uint8], inside: Box | None = None) -> Drawn:
    """What a row says of `mask` [h,w] of 0/1, which has its slice's own size, and `inside` as its box."""
    inside = inside or box(mask)
    return Drawn(encode(mask, inside), int(np.count_nonzero(mask)), inside)


def _draw(found: Found) -> Drawn | OSError:
    mask = restore_mask(found.mask, found.height, found.width)
    inside = box(mask)
    if found.path is not None:
        try:
            patiently(partial(write_mask, found.path, mask, inside))
        except OSError as error:
            if error.errno not in NAME_ERRORS:
                raise
            return error
    return drawn(mask, inside)
