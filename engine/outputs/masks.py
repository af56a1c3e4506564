"""Masks as PNG files."""

from __future__ import annotations

import errno
import os

import cv2
import numpy as np
import numpy.typing as npt

from engine.outputs.atomic import write_whole
from engine.outputs.mask_png import encode_mask
from engine.outputs.rle import Box


def write_mask(path: bytes, mask: npt.NDArray[np.uint8], inside: Box | None = None) -> None:
    """Write `mask` (`[h,w] uint8` of 0/1) as a PNG of 0/255, making its folders.

    `inside` is its `box`, where that is known. Raises OSError; its `errno` tells a full disk (ENOSPC, EDQUOT)
    from a name that is too long.
    """
    write_whole(path, encode_mask(mask, inside))


def box(mask: npt.NDArray[np.uint8]) -> Box:
    """The smallest box (x, y, width, height; pixels) around all that is not 0 in `mask` `[h,w]`, or zeros."""
    x, y, width, height = cv2.boundingRect(mask)
    return x, y, width, height


def write_png(path: bytes, image: npt.NDArray[np.uint8]) -> None:
    """Write `image` (uint8, `[h,w]` or BGR `[h,w,3]`) as PNG at OpenCV's level: naming one is 4 times slower.

    Not flushed to the disk, which would take longer than scoring does: after a power cut, unlike after a
    kill, the last few seconds' files may be short. Raises OSError.
    """
    encoded, data = cv2.imencode(".png", image)
    if not encoded:
        raise OSError(errno.EIO, "OpenCV cannot encode this image as PNG", os.fsdecode(path))
    write_whole(path, data.data)
