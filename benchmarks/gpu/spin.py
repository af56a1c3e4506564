"""A DeviceRunner that computes nothing and holds the whole chip for as long as a fast model would.

With it in the place of the models, the lanes show whether they could feed a chip of that pace. Its kernel is
PTX, which the driver compiles: no nvcc. As many blocks are started as fit on the chip at once, so that the
kernels of two streams run one behind the other, as those of real models do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.libcuda import call
from benchmarks.null import PASSES, NullRunner
from engine.bundle import Model
from engine.plans.half import PLAN_CONTRACT
from engine.runners.base import SIDE, OutputSpec, Precision

KERNEL: Final = b"hold"
PTX: Final = b"""
.version 6.0
.target sm_70
.address_size 64

.visible .entry hold(.param .u64 nanoseconds)
.maxntid 1024, 1, 1
{
    .reg .u64 %begun, %now, %past, %limit;
    .reg .pred %early;
    ld.param.u64 %limit, [nanoseconds];
    mov.u64 %begun, %globaltimer;
again:
    mov.u64 %now, %globaltimer;
    sub.u64 %past, %now, %begun;
    setp.lt.u64 %early, %past, %limit;
    @%early bra again;
    ret;
}
"""
"""For compute capability 7.0 and all that follow; %globaltimer counts nanoseconds, on some chips in steps of
a microsecond."""
THREADS: Final = 1024
_MULTIPROCESSORS: Final = 16  # cuda.h: CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT


class Spin:
    """The kernel, loaded into the current context."""

    def __init__(self) -> None:
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        call("cuModuleLoadData", ctypes.byref(self._module), ctypes.c_char_p(PTX))
        call("cuModuleGetFunction", ctypes.byref(self._function), self._module, ctypes.c_char_p(KERNEL))
        self._blocks = ctypes.c_uint(_multiprocessors() * self._blocks_each())

    def hold(self, stream: int, seconds: float) -> None:
        """Put it on the stream of that handle, to hold all of the chip for so long."""
        nanoseconds = ctypes.c_uint64(round(seconds * 1e9))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(nanoseconds))  # read before the call returns
        one, none = ctypes.c_uint(1), ctypes.c_void_p()
        grid, block = (self._blocks, one, one), (ctypes.c_uint(THREADS), one, one)
        shared, on = ctypes.c_uint(0), ctypes.c_void_p(stream)
        call("cuLaunchKernel", self._function, *grid, *block, shared, on, parameters, none)

    def unload(self) -> None:
        """Everything that holds is over."""
        call("cuModuleUnload", self._module)

    def _blocks_each(self) -> int:
        count = ctypes.c_int()
        arguments = (ctypes.byref(count), self._function, ctypes.c_int(THREADS), ctypes.c_size_t(0))
        call("cuOccupancyMaxActiveBlocksPerMultiprocessor", *arguments)
        return count.value


class PacedModel:
    """`DeviceModel` that holds the chip for `seconds` a slice and then gives the same answers every time.

    Made where its context is current. See `answers`.
    """

    name = "paced"
    version = "1"
    precision: Precision = "fp16"

    def __init__(self, model: Model, batch: int, seconds: float) -> None:
        self.model: Model = model
        self.outputs: Mapping[str, OutputSpec] = {
            name: PLAN_CONTRACT[model][name] for name in PLAN_CONTRACT[model] if name != "mask_probability"
        }
        self.identity: Mapping[str, str | int] = {"nanoseconds": round(seconds * 1e9)}
        self._seconds = seconds * batch
        with ExitStack() as undo:
            self._spin = Spin()
            undo.callback(self._spin.unload)
            self._answers = {
                name: (_uploaded(array, undo), array.nbytes) for name, array in answers(model, batch).items()
            }
            self._undo = undo.pop_all()

    def workspace(self, batch: int) -> int:
        """See `DeviceModel.workspace`."""
        del batch
        return 0

    def make(self, stream: int, batch: int, workspace: int) -> PacedRunner:
        """See `DeviceModel.make`."""
        del workspace
        return PacedRunner(self._spin, stream, batch, self._seconds, self._answers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()


class PacedRunner:
    """Holds the chip, then copies the answers on it."""

    def __init__(
        self, spin: Spin, stream: int, batch: int, seconds: float, answers: Mapping[str, tuple[int, int]]
    ) -> None:
        self.batch = batch
        self._spin = spin
        self._stream = stream
        self._seconds = seconds
        self._answers = answers

    def enqueue(self, pointers: Mapping[str, int]) -> None:
        """See `DeviceRunner.enqueue`."""
        self._spin.hold(self._stream, self._seconds)
        for name, (address, size) in self._answers.items():
            to, start = ctypes.c_uint64(pointers[name]), ctypes.c_uint64(address)
            call("cuMemcpyDtoDAsync_v2", to, start, ctypes.c_size_t(size), ctypes.c_void_p(self._stream))

    def close(self) -> None:
        """See `DeviceRunner.close`."""


def answers(model: Model, batch: int) -> dict[str, npt.NDArray[Any]]:
    """What a batch gives: the null models' share of slices passes, and each of these has their mask."""
    if model == "classifier":
        passed = np.zeros(batch, np.float32)
        passed[np.linspace(0, batch - 1, max(1, round(PASSES * batch))).astype(int)] = 1
        return {"tumor_probability": passed}
    mask = NullRunner("segmenter").infer(np.zeros((1, SIDE, SIDE, 3), np.uint8))["mask"]
    return {"mask_bits": np.ascontiguousarray(np.repeat(np.packbits(mask, axis=-1), batch, axis=0))}


def pace(costs: Mapping[Model, int], total: float) -> dict[Model, float]:
    """Seconds a slice of each model, by their operations: the cascade then does `total` slices a second."""
    whole = costs["classifier"] + PASSES * costs["segmenter"]
    return {model: cost / whole / total for model, cost in costs.items()}


def _uploaded(array: npt.NDArray[Any], undo: ExitStack) -> int:
    address = ctypes.c_uint64()
    call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(array.nbytes))
    undo.callback(call, "cuMemFree_v2", address)
    source = ctypes.c_void_p(array.ctypes.data)
    call("cuMemcpyHtoD_v2", address, source, ctypes.c_size_t(array.nbytes))
    return address.value


def _multiprocessors() -> int:
    device, count = ctypes.c_int(), ctypes.c_int()
    call("cuCtxGetDevice", ctypes.byref(device))
    call("cuDeviceGetAttribute", ctypes.byref(count), ctypes.c_int(_MULTIPROCESSORS), device)
    return count.value
