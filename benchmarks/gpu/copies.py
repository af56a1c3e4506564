"""How fast this GPU copies: to it, from it and within it, as much as the lanes copy, and much more."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.gpu.clock import Mark
from engine.gpu.device import Device, Stream
from engine.gpu.lane import SLICE_BYTES

LARGE: Final = 256 << 20
MEMORY: Final = 1 << 30
"""Copied within the GPU: many times what its caches hold."""


@dataclass(frozen=True, slots=True)
class Copy:
    """`moved` bytes; within the GPU each is read and written, and counts twice."""

    name: str
    moved: int
    enqueue: Callable[[], None]


def copies(device: Device, stream: Stream, batch: int, *, small: bool) -> Iterator[Copy]:
    """Each, ready to be timed before the next is asked for. `small` takes little memory, for a double."""
    large = SLICE_BYTES if small else LARGE
    there = device.memory(large)
    host = device.pagelocked((large,), np.uint8)
    host[:] = np.arange(large, dtype=np.uint8)
    yield Copy("host to GPU, pagelocked", large, lambda: stream.copy_in(there, host))
    yield Copy("GPU to host, pagelocked", large, lambda: stream.copy_out(host, there))
    block = host[: min(large, batch * SLICE_BYTES)]
    yield Copy("host to GPU, a batch", block.nbytes, lambda: stream.copy_in(there, block))
    ring = registered(device, block.nbytes)
    yield Copy("host to GPU, a batch of the ring", ring.nbytes, lambda: stream.copy_in(there, ring))
    whole = 2 * SLICE_BYTES if small else MEMORY
    first, second = device.memory(whole), device.memory(whole)
    stream.clear(first, whole)
    yield Copy("within the GPU", 2 * whole, lambda: stream.copy_within(second, first, whole))


def registered(device: Device, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Memory such as the ring's, which the driver was asked to pagelock; pagelocked where it refuses."""
    descriptor = os.memfd_create("gpu-check-ring", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, size)
        ring = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
    finally:
        os.close(descriptor)
    ring[:] = np.arange(size, dtype=np.uint8)
    if device.register(ring):
        ring = device.pagelocked((size,), np.uint8)
    return ring


def bandwidth(stream: Stream, copy: Copy, seconds: float) -> float:
    """Bytes a second, by the GPU's clock: as many copies one behind the other as take about `seconds`."""
    copy.enqueue()
    once = _timed(stream, copy, 3) / 3
    count = 3 if once == 0 else max(3, min(10_000, round(seconds / once)))
    spent = _timed(stream, copy, count)
    return count * copy.moved / spent if spent else 0.0


def _timed(stream: Stream, copy: Copy, count: int) -> float:
    begun = Mark(stream)
    for _ in range(count):
        copy.enqueue()
    ended = Mark(stream)
    ended.wait()
    return begun.until(ended)
