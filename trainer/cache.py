"""Decoded slices kept in memory: an epoch then costs no reading and no decoding."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from engine.errors import SliceError, UsageError
from engine.sources.geometry import place
from engine.sources.read import decode_slice
from trainer.dataset import read_mask

U8 = npt.NDArray[np.uint8]

INPUT_SIZE = 256
SHARE_OF_FREE_MEMORY = 0.25


class SliceCache:
    """Reads slices, and keeps as many of them as there is room for.

    What is kept stays: an epoch sees every slice once, in another order each time, and an older slice thrown
    out for a newer one would be missed as soon. Several threads may read at once.

    Args:
        limit: bytes, for all loaders that share the cache; 0 keeps nothing.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.held = 0
        self._images: dict[str, U8] = {}
        self._masks: dict[str, U8] = {}

    def image(self, path: str) -> U8:
        """The slice, `[256,256,3]` RGB, scaled as `tumorscan score` does. UsageError if it cannot be read."""
        image = self._images.get(path)
        if image is None:
            image = _read_image(path)
            self._keep(self._images, path, image)
        return image

    def mask(self, path: str) -> U8:
        """The mask of 0/1, `[256,256]`, where its slice lies. UsageError if it cannot be read."""
        bits = self._masks.get(path)
        if bits is None:
            bits = np.packbits(_read_mask(path), axis=1)
            self._keep(self._masks, path, bits)
        return np.unpackbits(bits, axis=1)

    def _keep(self, room: dict[str, U8], path: str, array: U8) -> None:
        if self.held + array.nbytes <= self.limit:
            self.held += array.nbytes
            array.flags.writeable = False
            room[path] = array


def default_limit() -> int:
    """A quarter of the memory that can be had now, in bytes; 0 where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    free = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)
    group = Path("/sys/fs/cgroup/memory.max")
    text = group.read_text().strip() if group.exists() else "max"
    return int(SHARE_OF_FREE_MEMORY * min(free, int(text) if text != "max" else free))


def _read_image(path: str) -> U8:
    out = np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    try:
        decode_slice(Path(path).read_bytes(), out)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except SliceError as error:
        raise UsageError(f"{path}: {error}; or remove it and its mask") from error
    return out


def _read_mask(path: str) -> U8:
    mask = read_mask(path)
    spot = place(mask.shape[0], mask.shape[1], INPUT_SIZE)
    out = np.zeros((INPUT_SIZE, INPUT_SIZE), np.uint8)
    out[spot.top : spot.top + spot.height, spot.left : spot.left + spot.width] = cv2.resize(
        mask.astype(np.uint8), (spot.width, spot.height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return out
