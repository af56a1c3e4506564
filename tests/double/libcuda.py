"""libcuda.so.1 as ctypes shows it: what tells of the driver, and the registration of host memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

from tests.double.double import Double
from tests.double.faults import ALREADY_REGISTERED, INVALID, NO_CONTEXT, NOT_REGISTERED, CudaFailure
from tests.double.hosts import Host, caller
from tests.double.memory import Block

LIBCUDA: Final = "libcuda.so.1"

_CUDA_VERSION: Final = 13000
_CAPABILITY: Final = {75: 9, 76: 0}  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME: Final = b"Double of a GPU"
_FLAGS: Final = 0xF  # all that CU_MEMHOSTREGISTER_* has


class Function:
    """One C function: takes what ctypes converts, gives a CUresult."""

    def __init__(self, name: str, body: Callable[..., int]) -> None:
        self.__name__ = name
        self.argtypes: Any = None
        self.restype: Any = ctypes.c_int
        self._body = body

    def __call__(self, *arguments: Any) -> int:
        kinds = self.argtypes or [ctypes.c_int] * len(arguments)
        if len(arguments) != len(kinds):
            raise TypeError(f"{self.__name__} takes {len(kinds)} arguments")
        # As ctypes does it: an int that no argtypes speak for is cut to 32 bits, addresses too.
        return self._body(
            *(
                kind(value) if isinstance(value, int) else value
                for kind, value in zip(kinds, arguments, strict=True)
            )
        )


class Library:
    """The loaded library: its functions are its attributes."""

    def __init__(self, functions: dict[str, Callable[..., int]]) -> None:
        for name, body in functions.items():
            setattr(self, name, Function(name, body))


def make_libcuda(double: Double) -> Library:
    """The library of that double."""

    def register(pointer: Any, size: Any, flags: Any) -> int:
        try:
            with double.call("cuMemHostRegister_v2"):
                _register(double, _number(pointer), _number(size), _number(flags))
        except CudaFailure as failure:
            return failure.code.number
        return 0

    def unregister(pointer: Any) -> int:
        with double.quietly() as host:
            return _unregister(double, host, _number(pointer))

    def version(into: Any) -> int:
        return _give(into, _CUDA_VERSION)

    def name(into: Any, size: Any, device: Any) -> int:
        into.value = _NAME
        return 0

    return Library(
        {
            "cuInit": lambda flags: 0,
            "cuDriverGetVersion": version,
            "cuDeviceGetCount": lambda into: _give(into, 1),
            "cuDeviceGet": lambda into, index: _give(into, _number(index)),
            "cuDeviceGetName": name,
            "cuDeviceGetAttribute": lambda into, key, device: _give(into, _CAPABILITY[_number(key)]),
            "cuDeviceTotalMem_v2": lambda into, device: _give(into, double.memory.total),
            "cuDeviceGetUuid": lambda into, device: 0,
            "cuMemHostRegister_v2": register,
            "cuMemHostUnregister": unregister,
        }
    )


def _register(double: Double, address: int, length: int, flags: int) -> None:
    double.refuse_when_steady("cuMemHostRegister_v2")
    if not address or not length or flags & ~_FLAGS:
        raise CudaFailure(INVALID)
    memory = double.memory
    for start, reach in memory.registered.items():
        if start < address + length and address < start + reach:
            raise CudaFailure(ALREADY_REGISTERED)
    if memory.find(address, length) is None:
        memory.watch("host", f"registered memory ({caller()})", _as_array(address, length))
    memory.registered[address] = length
    double.counts["registered ranges"] += 1


def _unregister(double: Double, host: Host, address: int) -> int:
    double.refuse_when_steady("cuMemHostUnregister")
    if not host.contexts:
        double.add("context", f"cuMemHostUnregister without a current context ({caller()})")
        return NO_CONTEXT.number
    if address not in double.memory.registered:
        return NOT_REGISTERED.number
    pending = double.memory.unseen(host, address, double.memory.registered[address])
    if pending is not None and not double.device.broken:
        double.add("race", f"cuMemHostUnregister ({caller()}) does not wait for {pending}")
    del double.memory.registered[address]
    double.counts["registered ranges"] -= 1
    return 0


def _as_array(address: int, length: int) -> Any:
    block = Block("host", "", address, length)
    return block.bytes


def _number(value: Any) -> int:
    return int(value.value or 0)  # a null pointer's value is None


def _give(into: Any, value: int) -> int:
    into._obj.value = value  # byref()
    return 0
