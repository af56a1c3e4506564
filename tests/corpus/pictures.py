"""What the files show: phantoms, and slices of the LGG set where TUMORSCAN_LGG names its folder."""

from __future__ import annotations

import functools
import os
import random
import tempfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from trainer.phantoms import write_phantoms

Picture = npt.NDArray[np.uint8]
"""[h,w,3] RGB."""

PHANTOMS, REAL = 24, 24
SMALL = (8, 17, 31, 64, 100, 129)
"""Sides of most pictures: a small one fails as a large one does, and costs less."""


@functools.cache
def pictures(seed: int) -> tuple[Picture, ...]:
    """Slices of 256x256, the same for the same seed and data."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = write_phantoms(Path(folder), PHANTOMS, seed).root
        paths = [*_slices_below(drawn), *_real_slices(seed)]
        return tuple(cv2.imread(str(path))[:, :, ::-1] for path in paths)


def picture(seed: int, chance: random.Random) -> Picture:
    """One of them, for the most part a piece of it."""
    whole = chance.choice(pictures(seed))
    if chance.random() < 0.25:
        return np.ascontiguousarray(whole)
    height, width = chance.choice(SMALL), chance.choice(SMALL)
    top, left = chance.randrange(256 - height), chance.randrange(256 - width)
    return np.ascontiguousarray(whole[top : top + height, left : left + width])


def _real_slices(seed: int) -> list[Path]:
    root = os.environ.get("TUMORSCAN_LGG", "")
    found = _slices_below(Path(root)) if root else []
    return random.Random(seed).sample(found, min(REAL, len(found)))


def _slices_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.tif") if not path.stem.endswith("_mask"))
