"""pycuda's allocations and copies. Copies read and write when they run, and hold no reference to an array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.double.contexts import Owned, calling
from tests.double.double import Double
from tests.double.faults import BAD_HANDLE, INVALID, NO_MEMORY, CudaFailure, raised
from tests.double.hosts import Host, Moment, caller
from tests.double.memory import Block, Reach
from tests.double.streams import Stream, queue_of
from tests.double.watched import WatchedArray


class _Allocation(Owned):
    def __init__(self, double: Double, host: Host, block: Block) -> None:
        super().__init__(double, host)
        self._block = block

    def free(self) -> None:
        with self._double.quietly() as host:
            if self._context is None:
                raise raised(f"{type(self).__name__}::free", CudaFailure(BAD_HANDLE))
            self._double.refuse_when_steady(f"{type(self).__name__}.free")
            self._go(host.now())

    def _give_back(self, moment: Moment) -> None:
        self._double.release(self._block, moment)


class DeviceAllocation(_Allocation):
    """pycuda.driver.DeviceAllocation."""

    _word = "device allocations"

    def __int__(self) -> int:
        return self._block.address

    def __index__(self) -> int:
        return self._block.address


class PagelockedHostAllocation(_Allocation):
    """pycuda.driver.PagelockedHostAllocation: the `base` of the array that pagelocked_empty gives."""

    _word = "pagelocked allocations"

    def __init__(self, double: Double, host: Host, block: Block, interface: dict[str, Any]) -> None:
        super().__init__(double, host, block)
        self.__array_interface__ = interface


def transfer_functions(double: Double) -> list[Callable[..., Any]]:
    """The functions of `pycuda.driver` that allocate and copy, for that double."""

    def mem_get_info() -> tuple[int, int]:
        with calling(double, "mem_get_info", "cuMemGetInfo"):
            return double.memory.free, double.memory.total

    def mem_alloc(bytes: int, /) -> DeviceAllocation:
        size = _integer(bytes)
        with calling(double, "mem_alloc", "cuMemAlloc") as host:
            double.refuse_when_steady("mem_alloc")
            if size == 0:
                raise CudaFailure(INVALID)
            block = double.memory.allocate(size, f"device memory of {size} bytes ({caller()})")
            if block is None:
                raise CudaFailure(NO_MEMORY)
            return DeviceAllocation(double, host, block)

    def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> WatchedArray:
        kind = np.dtype(dtype)
        dimensions = tuple(_integer(each) for each in ([shape] if isinstance(shape, int) else shape))
        with calling(double, "pagelocked_empty", "cuMemHostAlloc") as host:
            double.refuse_when_steady("pagelocked_empty")
            block = double.new_pagelocked(kind.itemsize * int(np.prod(dimensions, dtype=np.int64)))
            interface = {
                "version": 3,
                "data": (block.address, False),
                "shape": dimensions,
                "typestr": kind.str,
            }
            array = np.asarray(PagelockedHostAllocation(double, host, block, interface))
            return array.view(WatchedArray)

    def memcpy_htod_async(dest: Any, src: Any, stream: Stream | None = None) -> None:
        address, array = _address(dest), _contiguous(src, writable=False)
        with calling(double, "memcpy_htod_async", "cuMemcpyHtoDAsync") as host:
            target = device_reach(double, "memcpy_htod_async", address, array.nbytes, True)
            source = _host_reach(double, "memcpy_htod_async", array, False)
            _copy(double, host, stream, "memcpy_htod_async", target, source)

    def memcpy_dtoh_async(dest: Any, src: Any, stream: Stream | None = None) -> None:
        array, address = _contiguous(dest, writable=True), _address(src)
        with calling(double, "memcpy_dtoh_async", "cuMemcpyDtoHAsync") as host:
            target = _host_reach(double, "memcpy_dtoh_async", array, True)
            source = device_reach(double, "memcpy_dtoh_async", address, array.nbytes, False)
            _copy(double, host, stream, "memcpy_dtoh_async", target, source)

    def memcpy_dtod_async(dest: Any, src: Any, size: int, stream: Stream | None = None) -> None:
        to, start, length = _address(dest), _address(src), _integer(size)
        with calling(double, "memcpy_dtod_async", "cuMemcpyDtoDAsync") as host:
            target = device_reach(double, "memcpy_dtod_async", to, length, True)
            source = device_reach(double, "memcpy_dtod_async", start, length, False)
            _copy(double, host, stream, "memcpy_dtod_async", target, source)

    def memset_d8_async(dest: Any, data: int, size: int, stream: Stream | None = None) -> None:
        address, value, length = _address(dest), _integer(data), _integer(size)
        if value > 0xFF:
            raise OverflowError("bad numeric conversion: positive overflow")
        with calling(double, "memset_d8_async", "cuMemsetD8Async") as host:
            target = device_reach(double, "memset_d8_async", address, length, True)

            def work() -> None:
                target.bytes[:] = value

            double.device.enqueue(host, queue_of(double, stream), "memset_d8_async", [target], work)

    return [
        mem_get_info,
        mem_alloc,
        pagelocked_empty,
        memcpy_htod_async,
        memcpy_dtoh_async,
        memcpy_dtod_async,
        memset_d8_async,
    ]


def device_reach(double: Double, name: str, address: int, size: int, writes: bool) -> Reach:
    """Bytes of device memory; those of no allocation, or of one that is freed, are an error."""
    block = double.memory.find(address, size)
    if block is None or block.kind != "device" or block.freed:
        why = "in no allocation" if block is None or not block.freed else f"of {block.name}, {block.freed}"
        double.add("address", f"{name} ({caller()}) on {size} bytes at {address:#x}, {why}")
        raise CudaFailure(INVALID)
    return Reach(block, address - block.address, size, writes)


def _host_reach(double: Double, name: str, array: Any, writes: bool) -> Reach:
    address: int = array.__array_interface__["data"][0]
    block = double.memory.find(address, array.nbytes)
    if block is None or not double.memory.is_pagelocked(address, array.nbytes):
        double.add("address", f"{name} ({caller()}) with {array.nbytes} bytes of pageable host memory")
        raise CudaFailure(INVALID)
    return Reach(block, address - block.address, array.nbytes, writes)


def _copy(double: Double, host: Host, stream: Stream | None, name: str, target: Reach, source: Reach) -> None:
    def work() -> None:
        target.bytes[:] = source.bytes

    double.device.enqueue(host, queue_of(double, stream), name, [source, target], work)


def _integer(value: object) -> int:
    """Boost.Python takes no numpy integer."""
    if not isinstance(value, int):
        raise TypeError(f"Boost.Python.ArgumentError: {type(value).__name__} is no int")
    if value < 0:
        raise OverflowError("can't convert negative value to unsigned int")
    return value


def _address(value: object) -> int:
    return int(value) if isinstance(value, DeviceAllocation) else _integer(value)


def _contiguous(array: Any, *, writable: bool) -> Any:
    """The memory behind the buffer protocol, as a plain array."""
    plain = array.view(np.ndarray) if isinstance(array, np.ndarray) else np.frombuffer(array, np.uint8)
    if not (plain.flags.c_contiguous or plain.flags.f_contiguous):
        raise ValueError("ndarray is not contiguous")
    if writable and not plain.flags.writeable:
        raise ValueError("buffer source array is read-only")
    return plain
