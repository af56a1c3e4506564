"""Overlays: the slice as it was read, with the mask's outline drawn on it."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.outputs.masks import write_png

# Okabe and Ito's yellow: of their colour-blind-safe set the brightest, and so told by its lightness too from
# brain tissue and from the green lesions of a FLAIR composite.
OUTLINE_RGB: Final = (240, 228, 66)
_CROSS: Final = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def draw_overlay(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A copy of `image` (`[h,w,3] uint8` RGB) with the outline of `mask` (`[h,w] uint8`, 0 is outside).

    The outline is the mask's own outermost pixels, one wide, and closes along the image's border; what it
    encloses stays as it was.
    """
    inside = (mask != 0).view(np.uint8)
    core = cv2.erode(inside, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    overlay = image.copy()
    overlay[inside != core] = OUTLINE_RGB
    return overlay


def write_overlay(path: bytes, image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> None:
    """Draw the overlay and write it as a PNG, whole or not at all, making its folders. Raises OSError."""
    write_png(path, cv2.cvtColor(draw_overlay(image, mask), cv2.COLOR_RGB2BGR).astype(np.uint8, copy=False))
