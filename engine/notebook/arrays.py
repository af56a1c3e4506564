"""Slices that are arrays already: they join a run as files of a private folder, one after the other.

So they meet the same decoding, windows and geometry as any other slice, and their number costs no memory. A
file is written when the run asks for it; whoever started that deletes it when its row is committed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.disk import cannot_write
from engine.errors import UsageError
from engine.sources.windows import Tally, apply, window

Images = npt.NDArray[Any] | Iterable[npt.NDArray[Any]]
"""A stack [n,h,w] or [n,h,w,3] RGB, or one [h,w] or [h,w,3] RGB after the other."""

_KINDS: Final = "uif"
_CHANNELS: Final = 3
_UNCOMPRESSED: Final = (cv2.IMWRITE_TIFF_COMPRESSION, 1)


def as_files(images: Images, folder: Path) -> Iterator[bytes]:
    """The paths of `images` as files of `folder`, each written when its turn comes; image 12 is 12.tiff.

    Numbers other than uint8 are windowed to 8 bits: a stack by one window, as a volume is, and images that
    come one by one each by its own. Raises UsageError for what is no image, MachineError where it cannot be
    written, and what iterating over `images` raises.
    """
    to_bytes = _windowing(images)
    for number, image in enumerate(images):
        path = folder / f"{number}.tiff"
        _write(path, to_bytes(_expect_image(image, f"images[{number}]")))
        yield os.fsencode(path)


def expect_stack(images: Images) -> None:
    """Raise UsageError for a single array that is no stack; those that come one by one meet it in turn."""
    if not isinstance(images, np.ndarray):
        return
    if images.ndim == _CHANNELS + 1 or (images.ndim == _CHANNELS and images.shape[2] != _CHANNELS):
        return
    raise UsageError(
        f"images: an array of shape {list(images.shape)} is no stack of slices: give [n,h,w] or [n,h,w,3], "
        "and a single slice as [slice]"
    )


def _windowing(images: Images) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.uint8]]:
    """How an image becomes uint8."""
    if not isinstance(images, np.ndarray):
        return _alone
    if images.dtype == np.uint8:
        return np.asarray
    tally = Tally()
    for number, image in enumerate(images):
        tally.add(_expect_image(image, f"images[{number}]"))
    shared = tally.window()
    return partial(np.zeros_like, dtype=np.uint8) if shared is None else partial(apply, shared)


def _alone(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return image if image.dtype == np.uint8 else window(image)


def _expect_image(image: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    image = np.asarray(image)
    flat = image.ndim == 2 or (image.ndim == _CHANNELS and image.shape[2] == _CHANNELS)
    if flat and image.size and image.dtype.kind in _KINDS:
        return image
    raise UsageError(
        f"{name} is {image.dtype} {list(image.shape)}: give a slice [h,w] or [h,w,3] (RGB) of integers or "
        "floats"
    )


def _write(path: Path, image: npt.NDArray[np.uint8]) -> None:
    stored = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(path.suffix, np.ascontiguousarray(stored), _UNCOMPRESSED)
    if not written:
        raise UsageError(f"{path.name}: an image of {list(image.shape)} cannot be stored: give a smaller one")
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise cannot_write(path, error) from error
