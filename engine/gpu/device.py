"""CUDA as the lanes use it: pycuda, and libcuda for what pycuda cannot do. The lanes reach it only here.

Nothing uses the null stream, and no stream waits for it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

import numpy.typing as npt

from engine.driver import LIBCUDA
from engine.errors import MachineError
from engine.runners.base import first_line
from engine.runners.device import visible_gpu

# cuda.h: CU_STREAM_NON_BLOCKING; CU_EVENT_BLOCKING_SYNC and CU_EVENT_DISABLE_TIMING.
_STREAM_FLAGS: Final = 1
_EVENT_FLAGS: Final = 1 | 2


class GpuMemoryError(MachineError):
    """The GPU has too little memory for what was asked; with smaller batches it may have enough."""


class Event:
    """A place in a stream that a thread waits for. Waiting blocks the thread and takes no core."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver
        self._event: Any = driver.call(driver.cuda.Event, _EVENT_FLAGS)

    def wait(self) -> None:
        """Wait until all that was on the stream before it is done. MachineError when any of that failed."""
        self._driver.call(self._event.synchronize)

    def record(self, stream: Stream) -> None:
        """Stand behind what is on the stream by now."""
        self._driver.call(self._event.record, stream.raw)

    def let_go(self) -> None:
        """Give it back: pycuda does so with the last reference, in a thread that has its context."""
        self._event = None


class Stream:
    """A queue of work on the GPU. What a call names is in use until an event recorded behind it has fired.

    Device memory is given by address, sizes are in bytes; host memory is pagelocked or registered.
    """

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver
        self.raw: Any = driver.call(driver.cuda.Stream, _STREAM_FLAGS)
        self.handle = int(self.raw.handle)

    def copy_in(self, to: int, source: npt.NDArray[Any]) -> None:
        """Copy from the host to the GPU."""
        self._driver.call(self._driver.cuda.memcpy_htod_async, to, source, self.raw)

    def copy_out(self, into: npt.NDArray[Any], start: int) -> None:
        """Copy from the GPU to the host, as much as `into` holds."""
        self._driver.call(self._driver.cuda.memcpy_dtoh_async, into, start, self.raw)

    def copy_within(self, to: int, start: int, size: int) -> None:
        """Copy on the GPU."""
        self._driver.call(self._driver.cuda.memcpy_dtod_async, to, start, size, self.raw)

    def clear(self, start: int, size: int) -> None:
        """Fill with zeros."""
        self._driver.call(self._driver.cuda.memset_d8_async, start, 0, size, self.raw)

    def check(self) -> None:
        """Raise the MachineError of a GPU that has failed; what is on the stream goes on, nothing waits."""
        self._driver.call(self.raw.is_done)

    def wait(self) -> None:
        """Wait until it is empty: for shutting down."""
        self._driver.call(self.raw.synchronize)

    def let_go(self) -> None:
        """See `Event.let_go`."""
        self.raw = None


class Device:
    """One GPU's primary context, and the owner of everything that is made here until `free`.

    Everything but `current` needs the context to be current in the calling thread. Raises MachineError when
    the GPU fails, GpuMemoryError when it is too small.
    """

    def __init__(self, driver: _Driver, context: Any) -> None:
        self._driver = driver
        self._context = context
        self._streams: list[Stream] = []
        self._undo = ExitStack()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current in this thread; it must be so in every thread that works here."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def part(self) -> Device:
        """Another owner in the same context: what it makes goes with its own `free`, and then `let_go`."""
        return Device(self._driver, self._context)

    def free_memory(self) -> int:
        """Bytes of the GPU's memory that nobody has."""
        free, _ = self._driver.call(self._driver.cuda.mem_get_info)
        return int(free)

    def stream(self) -> Stream:
        """Make a stream."""
        stream = Stream(self._driver)
        self._streams.append(stream)
        self._undo.callback(stream.let_go)
        return stream

    def event(self) -> Event:
        """Make an event."""
        event = Event(self._driver)
        self._undo.callback(event.let_go)
        return event

    def memory(self, size: int) -> int:
        """Allocate so many bytes on the GPU and give their address, a multiple of 256; 0 for no bytes."""
        if size == 0:
            return 0
        allocation = self._driver.call(self._driver.cuda.mem_alloc, size)
        self._undo.callback(allocation.free)
        return int(allocation)

    def pagelocked(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Allocate host memory that the GPU copies from and to by itself; it holds anything."""
        array: npt.NDArray[Any] = self._driver.call(self._driver.cuda.pagelocked_empty, shape, dtype)
        allocation: Any = array.base
        self._undo.callback(allocation.free)
        return array

    def register(self, memory: npt.NDArray[Any]) -> int:
        """Pagelock host memory where it lies, until `free`. CUDA's error number, 0 when it was done.

        By libcuda itself, as pycuda's register_host_memory fails (its issue 459).
        """
        library = ctypes.CDLL(LIBCUDA)
        register, unregister = library.cuMemHostRegister_v2, library.cuMemHostUnregister
        register.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
        unregister.argtypes = [ctypes.c_void_p]
        address: int = memory.ctypes.data
        status = int(register(address, memory.nbytes, 0))
        if status == 0:
            # With the array, which keeps the memory mapped until then.
            self._undo.callback(lambda memory: unregister(memory.ctypes.data), memory)
        return status

    def on_free(self, undo: Callable[[], None]) -> None:
        """Have something else given back by `free`, which goes from the newest to the oldest."""
        self._undo.callback(undo)

    def let_go(self) -> None:
        """Give the context back, once it is current nowhere. What failed may keep this object alive."""
        self._context = None

    def free(self) -> None:
        """Wait for all streams and give back all that was made. Host memory from here is gone after it."""
        for stream in self._streams:
            with suppress(MachineError):  # of a GPU that has failed nothing is under way any more
                stream.wait()
        self._streams.clear()
        self._undo.close()


@contextmanager
def open_device(index: int) -> Iterator[Device]:
    """GPU `index` of those visible, its primary context current in this thread; all is freed at the end.

    Raises MachineError without a driver, that GPU, or pycuda.
    """
    visible_gpu(index)  # what pycuda says without a driver is no help
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        raise MachineError(f"pycuda cannot be loaded ({error}): pip install 'tumorscan[gpu]'") from error
    driver = _Driver(cuda)
    driver.call(cuda.init)
    # Once: pycuda frees what was made under one such object only where that very object is current.
    device = Device(driver, driver.call(lambda: cuda.Device(index).retain_primary_context()))
    try:
        with device.current():
            try:
                yield device
            finally:
                device.free()
    finally:
        device.let_go()


class _Driver:
    """pycuda.driver, with our errors in the place of its own."""

    def __init__(self, cuda: Any) -> None:
        self.cuda = cuda

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function gives. Raises MachineError where pycuda does."""
        try:
            return function(*arguments)
        except self.cuda.MemoryError as error:
            failure: MachineError = GpuMemoryError(f"the GPU has too little memory ({first_line(error)})")
        except self.cuda.Error as error:
            failure = MachineError(
                f"the GPU fails ({first_line(error)}): see nvidia-smi and dmesg, then run the same command "
                "to go on"
            )
        # Neither the cause nor this frame may keep a stream or an event alive: where the last reference to
        # it goes, and whether its context is current there, would be anyone's guess.
        del function, arguments
        raise failure
