"""Where the page's pictures come from: slices, masks, and their form in the page.

Every source's pixels pass through `read_pixels`; what can be scored is to be shown there.
"""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.errors import Failure, SliceError
from engine.outputs import rle
from engine.page.results import Slice
from engine.sources.again import Again
from engine.sources.files import read_file
from engine.sources.geometry import SIDE, place

QUALITY: Final = 75
"""Of WebP: 3 KB a slice, half of what JPEG takes, and no square edges beside a lesion."""
_ESCAPED: Final = re.compile(rb"\\x([0-9a-f]{2})")
_HALF: Final = 128
_AGAIN: Final = Again()


def read_pixels(path: bytes, index: int) -> npt.NDArray[np.uint8]:
    """Slice `index` of a file as RGB uint8 [h,w,3], as the models saw it: its longest side is SIDE.

    Raises SliceError where it cannot be read.
    """
    square = np.empty((SIDE, SIDE, 3), np.uint8)
    box = place(*_AGAIN.decode(path, index, square))
    return square[box.top : box.top + box.height, box.left : box.left + box.width]


def read_mask(results: Path, found: Slice) -> npt.NDArray[np.bool_] | None:
    """The mask that was found, [h,w] at the source's size; None where the run kept none, or it is gone."""
    import cv2

    if found.mask_rle:
        try:
            return rle.decode(found.mask_rle).astype(np.bool_)
        except ValueError:
            return None
    if not found.mask_path:
        return None
    try:
        data = read_file(path_of(found.mask_path, results))
    except SliceError:
        return None
    mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    return None if mask is None else mask.astype(np.bool_)


def path_of(text: str, base: Path) -> bytes:
    """What open() takes for a path of a table, below `base`: bytes that were no text stand there as \\xHH."""
    path = os.path.join(os.fsencode(base), os.fsencode(text))  # noqa: PTH118 - pathlib refuses bytes
    if "\\x" not in text or os.path.lexists(path):
        return path
    return _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), path)


def as_webp(pixels: npt.NDArray[np.uint8]) -> str:
    """RGB pixels [h,w,3] as the base64 of a WebP."""
    import cv2

    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(".webp", bgr, (cv2.IMWRITE_WEBP_QUALITY, QUALITY))
    if not encoded:
        raise SliceError(Failure("read", "decode", "its picture cannot be made"))
    return base64.b64encode(data.tobytes()).decode("ascii")


def at_picture_size(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """`mask` [h,w] scaled as `read_pixels` scales its slice; a mask that is there never vanishes."""
    import cv2

    box = place(*mask.shape)
    if mask.shape == (box.height, box.width):
        return mask
    shrinks = max(mask.shape) > SIDE
    full = mask.astype(np.uint8) * np.uint8(255)
    method = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST_EXACT
    scaled = cv2.resize(full, (box.width, box.height), interpolation=method)
    return scaled >= _HALF if (scaled >= _HALF).any() else scaled > 0
