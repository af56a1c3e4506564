"""A model on a GPU behind the host's `Runner` protocol, one batch at a time: for proofs and comparisons."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engine.gpu.device import Device, GpuMemoryError
from engine.runners.base import INPUT, SIDE, Images, Outputs, OutputSpec, Precision, check_images
from engine.runners.device import DeviceModel
from engine.runners.half import unpack_masks


class HostRunner:
    """A model on the GPU as a `Runner`: copies in, computes and copies back, one batch after the other.

    The device's context is current while this is made and left. Calls of several threads wait for each
    other. `MachineError` where the GPU has too little memory.
    """

    concurrency = 1

    def __init__(self, model: DeviceModel, batch: int, device: Device) -> None:
        self.name = model.name
        self.version = model.version
        self.precision: Precision = model.precision
        self.outputs = host_outputs(model.outputs)
        self.options: Mapping[str, str | int] = {**model.identity, "batch": batch}
        self._batch = batch
        self._lock = threading.Lock()
        self._buffers: _Buffers | None = _Buffers(model, batch, device)

    def infer(self, images: Images) -> Outputs:
        """See `Runner.infer`. Raises MachineError when the GPU fails."""
        check_images(images)
        n, batch = len(images), self._batch
        with self._lock:
            buffers = self._buffers
            if buffers is None:
                raise ValueError("infer() was called on a closed runner")
            results = {name: np.empty((n, *spec.shape), spec.dtype) for name, spec in buffers.outputs.items()}
            with buffers.device.current():
                for start in range(0, n, batch):
                    piece = slice(start, min(start + batch, n))
                    buffers.run(images[piece], {name: array[piece] for name, array in results.items()})
        if "mask_bits" in results:
            results["mask"], results["mask_pixels"] = unpack_masks(results.pop("mask_bits"))
        return results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            buffers, self._buffers = self._buffers, None
        if buffers is not None:
            buffers.close()


class _Buffers:
    """A stream, a runner on it, and its memory on the GPU and, pagelocked, on the host."""

    def __init__(self, model: DeviceModel, batch: int, device: Device) -> None:
        self.outputs = model.outputs
        self.device = device.part()
        try:
            self._make(model, batch)
        except GpuMemoryError as error:
            self.close()
            raise GpuMemoryError(
                f"the GPU has no room for the {model.model} at batches of {batch} slices ({error}): choose a "
                "smaller --batch, or see in nvidia-smi what else it does"
            ) from None
        except BaseException:
            self.close()
            raise

    def _make(self, model: DeviceModel, batch: int) -> None:
        tensors = {INPUT: OutputSpec(np.dtype(np.uint8), (SIDE, SIDE, 3)), **model.outputs}
        self._stream = self.device.stream()
        self._host = {
            name: self.device.pagelocked((batch, *spec.shape), spec.dtype) for name, spec in tensors.items()
        }
        self._there = {name: self.device.memory(array.nbytes) for name, array in self._host.items()}
        workspace = self.device.memory(model.workspace(batch))
        self._runner = model.make(self._stream.handle, batch, workspace)
        self.device.on_free(self._runner.close)

    def run(self, images: Images, results: Mapping[str, npt.NDArray[Any]]) -> None:
        """Score at most one batch into `results`; the rest of the batch is zeros, and is ignored."""
        n = len(images)
        self._host[INPUT][:n] = images
        self._host[INPUT][n:] = 0
        try:
            self._stream.copy_in(self._there[INPUT], self._host[INPUT])
            self._runner.enqueue(self._there)
            for name in self.outputs:
                self._stream.copy_out(self._host[name], self._there[name])
        finally:  # what is under way uses memory that the next call writes, and that closing frees
            self._stream.wait()
        for name, array in results.items():
            np.copyto(array, self._host[name][:n])

    def close(self) -> None:
        """Free all of it."""
        self.device.free()
        self.device.let_go()


def host_outputs(outputs: Iterable[str]) -> tuple[str, ...]:
    """What a runner gives for the outputs of a plan: bits become masks and their pixels."""
    names: list[str] = []
    for name in outputs:
        names += ["mask", "mask_pixels"] if name == "mask_bits" else [name]
    return tuple(names)
