"""The double itself: one device, what a program does to it, and what there is against the program."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self
from unittest import mock

import numpy as np
import numpy.typing as npt

from tests.double.device import Device
from tests.double.faults import ILLEGAL_ADDRESS, NO_CONTEXT, CudaFailure, Faults
from tests.double.findings import DoubleError, Finding, Findings, Kind
from tests.double.hosts import Clock, Host, Hosts, Moment, caller
from tests.double.memory import Block, Memory, Reach
from tests.double.schedules import make_schedule
from tests.double.threads import watched_threads
from tests.double.watched import WatchedArray, watched_conversions

MEMORY = 8 << 30
"""Bytes of device memory that a double has unless told otherwise; only what is touched takes any here."""

_TELLING = frozenset(
    {"Event.synchronize", "Event.query", "Stream.synchronize", "Stream.is_done", "Context.synchronize"}
)
"""Calls that fail of nothing but what ran before them, and so for good."""


class Double:
    """One GPU. See the package's docstring for how it is used."""

    def __init__(self, schedule: str = "laziest", *, memory: int = MEMORY) -> None:
        self.findings = Findings()
        self.hosts = Hosts()
        self.faults = Faults()
        self.memory = Memory(self.findings, memory)
        self.schedule = make_schedule(schedule)
        self.device = Device(self.memory, self.findings, self.faults, self.schedule)
        self.counts: Counter[str] = Counter()
        self.in_steady_state = False
        self.initialised = False
        self.driver: Any = None
        self._lock = threading.RLock()
        self._dropped: deque[tuple[Callable[[Moment], None], Moment]] = deque()
        self._patches = ExitStack()

    # What a test says.

    def fail(self, name: str, at: int = 0, error: str = "out of memory", count: int = 1) -> None:
        """Have a call fail: the one numbered `at` of `name`, or of all calls ("*"), and `count - 1` after it.

        `name` is one that `steps` shows, `error` one of `tests.double.faults.CODES`. A sticky one breaks the
        context for good. TensorRT says None or False instead of raising, libcuda returns the number.
        """
        self.faults.order(name, at, error, count, later=False)

    def fail_later(
        self, name: str, at: int = 0, error: str = "an illegal memory access was encountered"
    ) -> None:
        """Have an operation fail when it runs: its call succeeds, and all calls after the failure do not."""
        self.faults.order(name, at, error, 1, later=True)

    @property
    def steps(self) -> list[str]:
        """The names of all calls so far, in order: what `fail` counts."""
        return self.faults.steps

    def host_read(self, array: npt.NDArray[Any], what: str = "the host") -> None:
        """Say that the calling thread reads all of an array now."""
        self._known(array)
        self._host_access(array, False, what)

    def host_write(self, array: npt.NDArray[Any], what: str = "the host") -> None:
        """Say that the calling thread writes all of an array now, or lets others do so from now on."""
        self._known(array)
        self._host_access(array, True, what)

    def watch(self, array: npt.NDArray[Any], name: str) -> None:
        """Know a range of pageable host memory from now on; others become known when they are registered."""
        with self._lock:
            self.memory.watch("host", name, array.reshape(-1).view(np.uint8))

    def publish(self) -> Clock:
        """What the calling thread knows, for a thread that comes after it by ways that are not watched."""
        return self.hosts.current().publish()

    def receive(self, token: Clock) -> None:
        """Let the calling thread come after the one that published `token`."""
        self.hosts.current().receive(token)

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Between start-up and shut-down: nothing may be allocated or freed, or wait for the whole device."""
        self.in_steady_state = True
        try:
            yield
        finally:
            self.in_steady_state = False

    def leaks(self) -> dict[str, int]:
        """How many of what are left, by kind; empty where all was given back."""
        with self._lock:
            self._bury()
            return {name: count for name, count in sorted(self.counts.items()) if count}

    # What stands in for the real thing calls these.

    @contextmanager
    def call(self, name: str, *, context: bool = True) -> Iterator[Host]:
        """One call of the device's interface, which may have been ordered to fail: `CudaFailure`."""
        self.schedule.entered()
        with self._lock:
            self._bury()
            host = self.hosts.current()
            try:
                self.faults.enter(name)
            except CudaFailure as failure:
                if failure.code.sticky:
                    self.device.broken = failure.code
                elif name in _TELLING:
                    self.device.broken = ILLEGAL_ADDRESS
                    self.device.check()
                raise
            if context and not host.contexts:
                self.add("context", f"{name} without a current context ({caller()}, thread {host.name})")
                raise CudaFailure(NO_CONTEXT, "no currently active context?")
            self.device.check()
            yield host

    @contextmanager
    def quietly(self) -> Iterator[Host]:
        """A call that never fails, such as giving something back."""
        with self._lock:
            self._bury()
            yield self.hosts.current()

    def drop(self, bury: Callable[[Moment], None]) -> None:
        """An object dies, maybe in the middle of another call: `bury` it at the next one, as of now."""
        self._dropped.append((bury, self.hosts.current().now()))

    def add(self, kind: Kind, text: str) -> None:
        """Note what is wrong."""
        self.findings.add(kind, text)

    def refuse_when_steady(self, name: str) -> None:
        """Note a call that has no place between start-up and shut-down."""
        if self.in_steady_state:
            self.add("refusal", f"{name} after start-up ({caller()})")

    def release(self, block: Block, moment: Moment) -> None:
        """Free a block; nothing runs any more that could race with that once the context is broken."""
        self.memory.release(block, moment, compare=not self.device.broken)

    def new_pagelocked(self, size: int) -> Block:
        """Pagelocked host memory, poisoned."""
        raw = np.empty(size, np.uint8)
        block = self.memory.watch("pagelocked", f"pagelocked memory of {size} bytes ({caller()})", raw)
        block.poison()
        return block

    def _known(self, array: npt.NDArray[Any]) -> None:
        first, end = np.lib.array_utils.byte_bounds(array)
        if self.memory.find(first, end - first) is None:
            raise ValueError("the double does not know that memory: watch() it first")

    def _host_access(self, array: npt.NDArray[Any], writes: bool, what: str) -> None:
        with self._lock:
            first, end = np.lib.array_utils.byte_bounds(array)
            block = self.memory.find(first, end - first) if end > first else None
            if block is None or self.device.broken:  # nothing runs any more that could race
                return
            host = self.hosts.current()
            if block.freed:
                self.add("address", f"{what} ({caller()}) touches {block.name}, {block.freed}")
                return
            reach = Reach(block, first - block.address, end - first, writes)
            self.memory.touch(reach, host.clock, host.actor, None, f"{what} in thread {host.name}")

    def _bury(self) -> None:
        while self._dropped:
            bury, moment = self._dropped.popleft()
            bury(moment)

    # The installation of it all.

    def __enter__(self) -> Self:
        # Here, because each of them knows this class.
        from tests.double.driver import make_pycuda
        from tests.double.libcuda import LIBCUDA, make_libcuda
        from tests.double.tensorrt import make_tensorrt

        modules = {**make_pycuda(self), "tensorrt": make_tensorrt(self)}
        libcuda, load = make_libcuda(self), ctypes.CDLL

        def loaded(name: Any, *args: Any, **kwargs: Any) -> Any:
            return libcuda if name == LIBCUDA else load(name, *args, **kwargs)

        self._patches.enter_context(mock.patch.dict(sys.modules, modules))
        self._patches.enter_context(mock.patch.object(ctypes, "CDLL", loaded))
        self._patches.enter_context(mock.patch.object(WatchedArray, "told", staticmethod(self._told)))
        self._patches.enter_context(watched_conversions())
        self._patches.enter_context(watched_threads(self.hosts, self._thread_ends))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread_ends()
        if error is None and self.leaks():
            gc.collect()
            for name, count in self.leaks().items():
                self.add("leak", f"{count} {name} left")
        self._patches.close()
        self.memory.forget()
        found = list(self.findings.found)
        if error is not None:
            for finding in found:
                error.add_note(f"the double found a {finding}")
        elif found:
            raise DoubleError(found)

    def found(self) -> list[Finding]:
        """What was found so far, handed out: it is not held against the program any more."""
        found = list(self.findings.found)
        self.findings.found.clear()
        return found

    def _told(self, array: npt.NDArray[Any], writes: bool) -> None:
        self._host_access(array, writes, "the host")

    def _thread_ends(self) -> None:
        host = self.hosts.current()
        if host.contexts:
            self.add("context", f"thread {host.name} ends with a context pushed: pycuda aborts the process")
            host.contexts.clear()
