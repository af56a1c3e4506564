"""Programs to try the double on, and what they share: a context, registered memory, what was found."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tests.double.double import Double
from tests.double.slots import Slots

BATCHES: Final = 6
SIZE: Final = 256 * 256 * 3
SHAPE: Final = (1, 256, 256, 3)

OMISSIONS: Final = (
    "the copy-in waits for the work on its buffer",
    "that work is recorded",
    "the work waits for the copy-in",
    "the copy-in is recorded",
    "a slot waits for its copy-in",
    "the result is recorded",
    "the result is waited for",
)
SWAPS: Final = (
    "the copy-in",
    "the copy-in is recorded",
    "the work",
    "that work is recorded",
    "the copy-out",
    "the result is recorded",
)


@contextmanager
def pushed() -> Iterator[Any]:
    """`pycuda.driver` with its context current."""
    import pycuda.driver as cuda

    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        yield cuda
    finally:
        context.pop()
        context.detach()


def register(memory: npt.NDArray[np.uint8]) -> None:
    """Register the ring's memory, as lanes do."""
    library, (start, end) = ctypes.CDLL("libcuda.so.1"), np.lib.array_utils.byte_bounds(memory)
    size = ctypes.c_size_t(end - start)
    status = library.cuMemHostRegister_v2(ctypes.c_void_p(start), size, ctypes.c_uint(0))
    if status:
        raise OSError(f"cuMemHostRegister_v2 gives {status}")


def unregister(memory: npt.NDArray[np.uint8]) -> None:
    start, _ = np.lib.array_utils.byte_bounds(memory)
    assert ctypes.CDLL("libcuda.so.1").cuMemHostUnregister(ctypes.c_void_p(start)) == 0


@dataclass
class Program:
    """Batches copied in on one stream, copied on (as a model would) and out on another; two buffers each.

    A slot is refilled once its copy-in is done; a result is read when two more batches are under way.
    `without` leaves one of `OMISSIONS` out, `swapped` puts one of `SWAPS` on the other stream.
    """

    double: Double
    without: str = ""
    swapped: str = ""

    def run(self) -> list[npt.NDArray[np.uint8]]:
        """What came out: batch k is uint8 [1,256,256,3] of k."""
        with pushed() as cuda, ExitStack() as kept:
            slots = Slots(self.double, 3, 1)
            kept.callback(slots.close)
            register(slots.memory)
            kept.callback(unregister, slots.memory)
            buffers = [cuda.mem_alloc(SIZE) for _ in range(4)]
            for buffer in buffers:
                kept.callback(buffer.free)
            return self._run(cuda, slots, buffers[:2], buffers[2:])

    def _run(self, cuda: Any, slots: Slots, inputs: Any, outputs: Any) -> list[npt.NDArray[np.uint8]]:
        streams = [cuda.Stream(flags=1) for _ in range(2)]
        copied, worked = ([cuda.Event(flags=3) for _ in range(2)] for _ in range(2))
        done = [cuda.Event(flags=3) for _ in range(3)]
        results = [cuda.pagelocked_empty(SHAPE, np.uint8) for _ in range(3)]
        read = []
        for k in range(BATCHES):
            i, block, out = k % 2, k % 3, k % 3
            slots.fill(block, np.full(SHAPE, k, np.uint8))
            if self._does("the copy-in waits for the work on its buffer"):
                streams[0].wait_for_event(worked[i])
            cuda.memcpy_htod_async(inputs[i], slots.memory[block], streams[self._on("the copy-in", 0)])
            if self._does("the copy-in is recorded"):
                copied[i].record(streams[self._on("the copy-in is recorded", 0)])
            if self._does("the work waits for the copy-in"):
                streams[1].wait_for_event(copied[i])
            cuda.memcpy_dtod_async(outputs[i], inputs[i], SIZE, streams[self._on("the work", 1)])
            if self._does("that work is recorded"):
                worked[i].record(streams[self._on("that work is recorded", 1)])
            cuda.memcpy_dtoh_async(results[out], outputs[i], streams[self._on("the copy-out", 1)])
            if self._does("the result is recorded"):
                done[out].record(streams[self._on("the result is recorded", 1)])
            if self._does("a slot waits for its copy-in"):
                copied[i].synchronize()
            slots.release(block)
            if k >= 2:
                read.append(self._read(results[(k - 2) % 3], done[(k - 2) % 3]))
        for k in (BATCHES - 2, BATCHES - 1):
            read.append(self._read(results[k % 3], done[k % 3]))
        for stream in streams:
            stream.synchronize()
        return read

    def _read(self, result: Any, done: Any) -> npt.NDArray[np.uint8]:
        if self._does("the result is waited for"):
            done.synchronize()
        return np.array(result + 0)

    def _does(self, step: str) -> bool:
        return step != self.without

    def _on(self, step: str, stream: int) -> int:
        return 1 - stream if step == self.swapped else stream


Body = Callable[[Any, Double], None]


def found(body: Body, schedule: str = "laziest") -> list[str]:
    """Run a program with `pycuda.driver` and a current context; the kinds of what was found, each once."""
    with Double(schedule) as double:
        with pushed() as cuda:
            body(cuda, double)
        kinds = {finding.kind for finding in double.found()}
    return sorted(kinds)
