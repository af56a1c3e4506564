"""pycuda's devices and contexts, and what it means to belong to one.

Contexts are a stack a thread, each `retain_primary_context()` gives an object of its own, and what was made
under one is given back only where that very object is current or in the thread that made it: elsewhere pycuda
warns and leaks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.double.double import Double
from tests.double.faults import INVALID, NO_CONTEXT, NOT_INITIALISED, CudaFailure, raised
from tests.double.hosts import Host, Moment, caller


@contextmanager
def calling(double: Double, name: str, routine: str, *, context: bool = True) -> Iterator[Host]:
    """`Double.call` with pycuda's errors; `routine` is the CUDA function that they name."""
    try:
        with double.call(name, context=context) as host:
            if not double.initialised and name != "init":
                raise CudaFailure(NOT_INITIALISED)
            yield host
    except CudaFailure as failure:
        raise raised(routine, failure) from None


class Context:
    """pycuda.driver.Context: one retained reference to the primary context."""

    _double: Double

    def __init__(self, maker: Host) -> None:
        self._maker = maker
        self._valid = True
        self._double.counts["contexts"] += 1

    def push(self) -> None:
        with self._double.quietly() as host:
            if not self._valid:
                raise raised("cuCtxPushCurrent", CudaFailure(NO_CONTEXT))
            host.contexts.append(self)

    @classmethod
    def pop(cls) -> None:
        with cls._double.quietly() as host:
            if not host.contexts:
                raise raised("context::pop", CudaFailure(NO_CONTEXT, "cannot pop non-current context"))
            host.contexts.pop()

    @classmethod
    def synchronize(cls) -> None:
        with calling(cls._double, "Context.synchronize", "cuCtxSynchronize") as host:
            cls._double.refuse_when_steady("Context.synchronize")
            for queue in list(cls._double.device.queues.values()):
                if queue.last is not None:
                    cls._double.device.finish(queue.last)
                    host.receive(queue.clock)

    @classmethod
    def get_device(cls) -> Any:
        return cls._double.driver.Device(0)

    def detach(self) -> None:
        with self._double.quietly() as host:
            if not self._valid:
                raise raised("context::detach", CudaFailure(NO_CONTEXT, "cannot detach from invalid context"))
            self._valid = False
            # From any other thread pycuda does nothing at all, and the reference stays retained.
            if (host.contexts and host.contexts[-1] is self) or host is self._maker:
                self._double.counts["contexts"] -= 1
                host.contexts[:] = [context for context in host.contexts if context is not self]

    @property
    def handle(self) -> int:
        return 0xC0DE

    def __del__(self) -> None:
        if self._valid:
            self._valid = False
            self._double.counts["contexts"] -= 1


class Device:
    """pycuda.driver.Device: there is one."""

    _double: Double

    def __init__(self, ordinal: int, /) -> None:
        with calling(self._double, "Device", "cuDeviceGet", context=False):
            if ordinal != 0:
                raise CudaFailure(INVALID)

    @classmethod
    def count(cls) -> int:
        with calling(cls._double, "Device.count", "cuDeviceGetCount", context=False):
            return 1

    def name(self) -> str:
        return "Double of a GPU"

    def compute_capability(self) -> tuple[int, int]:
        return (9, 0)

    def total_memory(self) -> int:
        return self._double.memory.total

    def retain_primary_context(self) -> Context:
        name, routine = "Device.retain_primary_context", "cuDevicePrimaryCtxRetain"
        with calling(self._double, name, routine, context=False) as host:
            made: Context = self._double.driver.Context(host)
            return made


class Owned:
    """What belongs to the context it was made under. `_word` is its name in the counts of what is left."""

    _word = ""

    def __init__(self, double: Double, host: Host) -> None:
        self._double = double
        self._context: Context | None = host.contexts[-1]
        double.counts[self._word] += 1

    def _go(self, moment: Moment) -> None:
        context, self._context = self._context, None
        if context is None:
            return
        if moment.context is not context and moment.host is not context._maker:
            text = (
                f"{self._word} let go in thread {moment.host.name} ({caller()}), where another Context object"
            )
            self._double.add("context", f"{text} or none is current: pycuda cannot clean them up")
            return
        self._double.counts[self._word] -= 1
        self._give_back(moment)

    def _give_back(self, moment: Moment) -> None:
        """What the device does when it goes."""

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None:
            self._double.drop(self._go)
