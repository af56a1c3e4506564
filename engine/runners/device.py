"""What a model on a GPU promises to the lanes that drive it, which know no runtime."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from engine.bundle import Model
from engine.driver import Gpu, probe_driver
from engine.errors import MachineError
from engine.runners.base import OutputSpec, Precision


class DeviceRunner(Protocol):
    """One model for one stream and one batch size N.

    One execution at a time is in flight: what is enqueued next waits for it on the stream, and buffers are
    the caller's to keep as they are until then.
    """

    @property
    def batch(self) -> int:
        """N: every execution is of so many slices; tails are padded and the padding is ignored."""
        ...

    def enqueue(self, pointers: Mapping[str, int]) -> None:
        """Put one execution on the stream and return at once.

        `pointers` are device addresses of `images` uint8 [N,256,256,3] and of every output of the model.
        Raises `MachineError` when the runtime says no.
        """
        ...

    def close(self) -> None:
        """Free what it holds. The caller has waited for the stream."""
        ...


class DeviceModel(Protocol):
    """One model loaded on the GPU of the current context: a context manager that makes runners.

    It is left after all of its runners are closed, and that context is current in every call of either.
    """

    @property
    def name(self) -> str:
        """The runtime: "tensorrt", "tensorrt-rtx", "onnxruntime-cuda"."""
        ...

    @property
    def version(self) -> str:
        """The runtime's own version."""
        ...

    @property
    def model(self) -> Model:
        """Which of the two it is."""
        ...

    @property
    def precision(self) -> Precision:
        """What the convolutions are computed in."""
        ...

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """What it gives, as `engine.plans.half.PLAN_CONTRACT` has it."""
        ...

    @property
    def identity(self) -> Mapping[str, str | int]:
        """What else may change a bit of a result: the plan's sha256, or the runtime's options."""
        ...

    def workspace(self, batch: int) -> int:
        """Bytes of scratch memory that a runner may share with others that never run at the same time.

        Raises `UsageError` for a batch that the model was not built for.
        """
        ...

    def make(self, stream: int, batch: int, workspace: int) -> DeviceRunner:
        """A runner on the CUDA stream of that handle, with scratch memory at address `workspace`.

        The address, a multiple of 256, is that of `workspace(batch)` bytes or more, 0 where these are 0. Work
        may be put on the stream already here.
        Raises `ValueError` for the null stream (0), which waits for all others, `UsageError` for a batch that
        the model was not built for, `MachineError` when there is no memory for it.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def visible_gpu(device: int) -> Gpu:
    """GPU `device` of those that this process sees. Raises `MachineError` for no driver, or no such GPU."""
    gpus = probe_driver().gpus
    if device >= len(gpus):
        raise MachineError(f"there is no GPU {device}: the driver shows {len(gpus)}, counted from 0")
    return gpus[device]
