"""The double of a GPU with what benchmarks use beside the lanes: events that take times, a kernel by its PTX.

It measures nothing: between any two events lies a millisecond.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Self
from unittest import mock

from tests.double import Double, libcuda
from tests.double.contexts import calling
from tests.double.faults import BAD_HANDLE, INVALID, NO_MEMORY, CudaFailure
from tests.double.memory import Block
from tests.double.streams import BLOCKING_SYNC, DISABLE_TIMING, Event
from tests.double.transfers import device_reach

MILLISECONDS = 1.0
BLOCKS_EACH = 2
MULTIPROCESSORS = 4
_ATTRIBUTES = {16: MULTIPROCESSORS, 75: 9, 76: 0}


class TimedEvent(Event):
    """pycuda.driver.Event, of which one without times is the lanes' own kind."""

    def __init__(self, flags: int = 0) -> None:
        super().__init__(flags | DISABLE_TIMING)
        self._timed = not flags & DISABLE_TIMING
        if not flags & BLOCKING_SYNC:
            self._double.add("refusal", "an event that spins")

    def time_till(self, end: TimedEvent) -> float:
        """cuEventElapsedTime: both have been recorded, and have happened."""
        with calling(self._double, "Event.time_till", "cuEventElapsedTime"):
            for event in (self, end):
                if not event._timed or event._mark is None or not event._mark.op.done:
                    raise CudaFailure(INVALID, "an event that takes no time, or has not happened")
            return MILLISECONDS


class TimedDouble(Double):
    """See the module. `launched` are the nanoseconds of every kernel that ran, in order."""

    def __init__(self, schedule: str = "laziest", **settings: int) -> None:
        super().__init__(schedule, **settings)
        self.launched: list[int] = []
        self.loaded: list[bytes] = []

    def __enter__(self) -> Self:
        plain = libcuda.make_libcuda

        def made(double: Double) -> libcuda.Library:
            library = plain(double)
            for name, body in _functions(self).items():
                setattr(library, name, libcuda.Function(name, body))
            return library

        with mock.patch.object(libcuda, "make_libcuda", made):
            super().__enter__()
        self.driver.Event = type("Event", (TimedEvent,), {"_double": self})
        return self


def _functions(double: TimedDouble) -> dict[str, Callable[..., int]]:
    modules: dict[int, bytes] = {}
    blocks: dict[int, Block] = {}

    def called(name: str, work: Callable[[Any], None]) -> int:
        try:
            with double.call(name) as host:
                work(host)
        except CudaFailure as failure:
            return failure.code.number
        return 0

    def load(into: Any, image: Any) -> int:
        def work(host: Any) -> None:
            double.refuse_when_steady("cuModuleLoadData")
            handle = 0x6000 + len(double.loaded)
            double.loaded.append(image.value)
            modules[handle] = image.value
            double.counts["modules"] += 1
            into._obj.value = handle

        return called("cuModuleLoadData", work)

    def unload(module: Any) -> int:
        with double.quietly():
            if modules.pop(module.value, None) is None:
                return BAD_HANDLE.number
            double.counts["modules"] -= 1
        return 0

    def function(into: Any, module: Any, name: Any) -> int:
        if module.value not in modules or b".entry " + name.value not in modules[module.value]:
            return BAD_HANDLE.number
        into._obj.value = module.value
        return 0

    def launch(function: Any, *rest: Any) -> int:
        grid, block = [each.value for each in rest[:3]], [each.value for each in rest[3:6]]
        _, stream, parameters, extra = rest[6:]

        def work(host: Any) -> None:
            queue = double.device.queues.get(stream.value)
            if function.value not in modules or queue is None or extra.value is not None:
                raise CudaFailure(BAD_HANDLE)
            if grid != [MULTIPROCESSORS * BLOCKS_EACH, 1, 1] or block != [1024, 1, 1]:
                raise CudaFailure(INVALID)
            nanoseconds = ctypes.c_uint64.from_address(parameters[0]).value
            double.device.enqueue(
                host, queue, "cuLaunchKernel", (), lambda: double.launched.append(nanoseconds)
            )

        return called("cuLaunchKernel", work)

    def allocate(into: Any, size: Any) -> int:
        def work(host: Any) -> None:
            double.refuse_when_steady("cuMemAlloc_v2")
            block = double.memory.allocate(size.value, f"{size.value} bytes by libcuda")
            if block is None:
                raise CudaFailure(NO_MEMORY)
            blocks[block.address] = block
            double.counts["allocations by libcuda"] += 1
            into._obj.value = block.address

        return called("cuMemAlloc_v2", work)

    def free(address: Any) -> int:
        with double.quietly() as host:
            double.release(blocks.pop(address.value), host.now())
            double.counts["allocations by libcuda"] -= 1
        return 0

    def upload(to: Any, source: Any, size: Any) -> int:
        def work(host: Any) -> None:
            target = device_reach(double, "cuMemcpyHtoD_v2", to.value, size.value, True)
            double.memory.touch(target, host.clock, host.actor, None, "cuMemcpyHtoD_v2")
            ctypes.memmove(target.bytes.ctypes.data, source.value, size.value)

        return called("cuMemcpyHtoD_v2", work)

    def copy(to: Any, start: Any, size: Any, stream: Any) -> int:
        def work(host: Any) -> None:
            target = device_reach(double, "cuMemcpyDtoDAsync_v2", to.value, size.value, True)
            source = device_reach(double, "cuMemcpyDtoDAsync_v2", start.value, size.value, False)
            queue = double.device.queues.get(stream.value)
            if queue is None:
                raise CudaFailure(BAD_HANDLE)

            def run() -> None:
                target.bytes[:] = source.bytes

            double.device.enqueue(host, queue, "cuMemcpyDtoDAsync_v2", [source, target], run)

        return called("cuMemcpyDtoDAsync_v2", work)

    def give(into: Any, value: int) -> int:
        into._obj.value = value
        return 0

    return {
        "cuModuleLoadData": load,
        "cuModuleUnload": unload,
        "cuModuleGetFunction": function,
        "cuOccupancyMaxActiveBlocksPerMultiprocessor": lambda into, *rest: give(into, BLOCKS_EACH),
        "cuLaunchKernel": launch,
        "cuMemAlloc_v2": allocate,
        "cuMemFree_v2": free,
        "cuMemcpyHtoD_v2": upload,
        "cuMemcpyDtoDAsync_v2": copy,
        "cuCtxGetDevice": lambda into: give(into, 0),
        "cuDeviceGetAttribute": lambda into, key, device: give(into, _ATTRIBUTES[key.value]),
    }
