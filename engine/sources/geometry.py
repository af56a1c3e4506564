"""How a slice of any size sits in the models' square, and how its mask comes back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIDE = 256


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the scaled slice lies in the square: a box in its pixels."""

    top: int
    left: int
    height: int
    width: int


def place(height: int, width: int, size: int = SIDE) -> Placement:
    """Where a slice of `height` x `width` pixels goes: aspect kept, centred, at least one pixel each way."""
    longest = max(height, width)
    placed_height = max(1, round(height * size / longest))
    placed_width = max(1, round(width * size / longest))
    return Placement((size - placed_height) // 2, (size - placed_width) // 2, placed_height, placed_width)


def fit(image: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
    """Write `image` [h,w,3] into `out` [256,256,3], scaled with its aspect kept and padded with 0.

    A slice that has the size of `out` is copied as it is. Shrinking averages areas, growing is bilinear.
    Raises ValueError for an image of other channels or numbers.
    """
    if image.ndim != 3 or image.shape[2] != out.shape[2] or image.dtype != out.dtype:
        # OpenCV would take other memory for its result then, and leave in `out` what was there.
        raise ValueError(f"{image.dtype} {image.shape} is no RGB image of 8 bits")
    size = out.shape[0]
    if image.shape == out.shape:
        np.copyto(out, image)
        return
    import cv2

    height, width = image.shape[:2]
    box = place(height, width, size)
    if (box.height, box.width) != (size, size):
        out[...] = 0
    inside = out[box.top : box.top + box.height, box.left : box.left + box.width]
    shrinks = max(height, width) > size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    source = np.ascontiguousarray(image)
    cv2.resize(source, (box.width, box.height), dst=inside, interpolation=interpolation)


def restore_mask(mask: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Map `mask` [256,256] back to the slice it was made of: [height,width], nearest.

    A mask that already has that size is returned itself, not a copy.
    """
    if mask.shape == (height, width):
        return mask
    import cv2

    box = place(height, width, mask.shape[0])
    inside = mask[box.top : box.top + box.height, box.left : box.left + box.width]
    restored = cv2.resize(inside, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(restored, dtype=np.uint8)
