"""The slices that the GPU gets: a batch of them, and all of them in memory that a GPU's process can map."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.bench import load_slices
from engine.gpu.lane import SLICE_BYTES
from engine.run import Options
from engine.runners.base import SIDE, Images
from engine.sources.discovery import SourceFile


def first_batch(data: Path, batch: int) -> Images:
    """uint8 [batch,256,256,3]: the first slices of a folder, again from the start where they are too few."""
    images = load_slices(Options((str(data),), data), batch).images
    return np.take(images, range(batch), axis=0, mode="wrap")


@dataclass(frozen=True, slots=True)
class Resident:
    """Decoded slices in whole blocks of `batch`, as the ring has them, in memory behind `descriptor`."""

    descriptor: int
    images: Images
    batch: int

    @property
    def blocks(self) -> int:
        return len(self.images) // self.batch

    def block(self, number: int) -> Images:
        """Block `number` of an endless row of them."""
        first = number % self.blocks * self.batch
        return self.images[first : first + self.batch]


@contextmanager
def resident(data: Path, batch: int, most: int) -> Iterator[Resident]:
    """At most so many slices of a folder, those at the end again from the start where they fill no block."""
    found = load_slices(Options((str(data),), data), most).images
    count = -(-len(found) // batch) * batch
    descriptor = os.memfd_create("gpu-check-slices", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, count * SLICE_BYTES)
        mapping = mmap.mmap(descriptor, count * SLICE_BYTES)
        images = np.frombuffer(mapping, np.uint8).reshape(count, SIDE, SIDE, 3)
        np.take(found, range(count), axis=0, mode="wrap", out=images)
        yield Resident(descriptor, images, batch)
    finally:
        os.close(descriptor)


def entries(count: int, per_volume: int = 1000) -> Iterator[SourceFile]:
    """Names for slices that lie in memory: so many files of which each has a row and a mask of its own."""
    for number in range(count):
        volume = f"ram/volume_{number // per_volume:04d}"
        name = f"slice_{number:07d}.tif"
        yield SourceFile(
            path=f"{volume}/{name}".encode(),
            image_path=f"{volume}/{name}",
            volume=volume,
            mask_stem=f"{volume}/{name}".encode(),
            order=number.to_bytes(8, "big"),
            size=SLICE_BYTES,
            mtime_ns=0,
        )
