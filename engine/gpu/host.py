"""Both models on a GPU behind the host's `Runner` protocol, one batch at a time: for proofs and comparisons.

It makes a CUDA context in its process, which a fault of the GPU kills: a run's parent keeps away from it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from engine.bundle import Bundle, Model
from engine.cascade import Cascade, OperatingPoint
from engine.errors import MachineError, UsageError
from engine.plans.cache import CachedPlan, PlanCache
from engine.plans.half import half_graph
from engine.plans.toolkit import load_toolkit
from engine.runners.base import INPUT, SIDE, Images, Outputs, OutputSpec, Precision, check_images, first_line
from engine.runners.device import DeviceModel, visible_gpu
from engine.runners.half import unpack_masks

_NON_BLOCKING: Final = 1
"""CU_STREAM_NON_BLOCKING: the default kind of stream waits for the null stream."""

Open = Callable[[Model], DeviceModel]


@contextmanager
def open_plans(
    cache: PlanCache, plans: Mapping[Model, CachedPlan], operating: OperatingPoint, *, device: int = 0
) -> Iterator[Cascade]:
    """Both plans of the cache, of one flavour, as a cascade on GPU `device`; to be left in the same thread.

    Raises:
        MachineError: no driver, GPU, pycuda, TensorRT or memory, or a plan that cannot be loaded here.
        UsageError: a plan that is refused, or one that lacks what the operating point needs.
    """
    toolkit = load_toolkit(plans["segmenter"].record.flavour)
    lacking = set(operating.segmenter_outputs) - set(_host_outputs(plans["segmenter"].record.outputs))
    if lacking:
        raise UsageError(
            f"the segmenter's plan gives no {', '.join(sorted(lacking))}, which another mask threshold than "
            "the bundle's needs: leave --mask-threshold out"
        )

    def opened(model: Model) -> DeviceModel:
        from engine.runners.tensorrt import TensorRtModel

        return TensorRtModel(toolkit, cache, plans[model], device)

    batches = {model: plan.record.batch for model, plan in plans.items()}
    with _cascade(opened, batches, operating, device) as cascade:
        yield cascade


@contextmanager
def open_cuda(
    bundle: Bundle, operating: OperatingPoint, *, batch: int, device: int = 0, prefer_nhwc: bool = False
) -> Iterator[Cascade]:
    """Both FP16 graphs on ONNX Runtime's CUDA provider, as `open_plans`. Raises what `CudaModel` does."""
    probabilities = "mask_probability" in operating.segmenter_outputs

    def opened(model: Model) -> DeviceModel:
        from engine.runners.cuda import CudaModel

        graph = half_graph(bundle.graph(model).read_bytes(), model, probabilities=probabilities)
        return CudaModel(graph, model, device=device, prefer_nhwc=prefer_nhwc)

    with _cascade(opened, {"classifier": batch, "segmenter": batch}, operating, device) as cascade:
        yield cascade


@contextmanager
def primary_context(device: int) -> Iterator[Any]:
    """The primary context of GPU `device`, current in this thread, as a `pycuda.driver.Context`.

    `pushed` makes it current in others. Raises MachineError without a driver, that GPU, or pycuda.
    """
    visible_gpu(device)  # what pycuda says without a driver is no help
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        raise MachineError(f"pycuda cannot be loaded ({error}): pip install 'tumorscan[gpu]'") from error
    try:
        cuda.init()
        context = cuda.Device(device).retain_primary_context()
    except cuda.Error as error:
        raise MachineError(f"GPU {device} takes no work: {first_line(error)}; see nvidia-smi") from error
    with pushed(context):
        yield context


@contextmanager
def pushed(context: Any) -> Iterator[None]:
    """The context current in this thread."""
    context.push()
    try:
        yield
    finally:
        context.pop()


class HostRunner:
    """A model on the GPU as a `Runner`: copies in, computes and copies back, one batch after the other.

    `context` is pycuda's, current while it is opened and closed. Calls of several threads wait for each
    other. `MachineError` where the GPU has too little memory.
    """

    concurrency = 1

    def __init__(self, model: DeviceModel, batch: int, context: Any) -> None:
        self.name = model.name
        self.version = model.version
        self.precision: Precision = model.precision
        self.outputs = _host_outputs(model.outputs)
        self.options: Mapping[str, str | int] = {**model.identity, "batch": batch}
        self._context = context
        self._batch = batch
        self._lock = threading.Lock()
        self._buffers: _Buffers | None = _Buffers(model, batch)

    def infer(self, images: Images) -> Outputs:
        """See `Runner.infer`. Raises MachineError when the GPU fails."""
        check_images(images)
        n, batch = len(images), self._batch
        with self._lock:
            buffers = self._buffers
            if buffers is None:
                raise ValueError("infer() was called on a closed runner")
            results = {name: np.empty((n, *spec.shape), spec.dtype) for name, spec in buffers.outputs.items()}
            with pushed(self._context):
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
            self._context = None  # pycuda gives a context back with the last reference to it
        if buffers is not None:
            buffers.close()


class _Buffers:
    """A stream, a runner on it, and its memory on the GPU and, pagelocked, on the host."""

    def __init__(self, model: DeviceModel, batch: int) -> None:
        import pycuda.driver as cuda

        self.outputs = model.outputs
        self._cuda = cuda
        tensors = {INPUT: OutputSpec(np.dtype(np.uint8), (SIDE, SIDE, 3)), **model.outputs}
        with ExitStack() as undo:
            try:
                self._stream = cuda.Stream(flags=_NON_BLOCKING)
                self._host = {
                    name: cuda.pagelocked_empty((batch, *spec.shape), spec.dtype)
                    for name, spec in tensors.items()
                }
                self._device = {name: self._allocated(undo, self._host[name].nbytes) for name in tensors}
                workspace = self._allocated(undo, model.workspace(batch))
                self._runner = model.make(int(self._stream.handle), batch, workspace)
            except cuda.Error as error:
                raise MachineError(
                    f"the GPU has no room for the {model.model} at batches of {batch} slices "
                    f"({first_line(error)}): choose a smaller --batch, or see in nvidia-smi what else it does"
                ) from error
            undo.callback(self._runner.close)
            self._undo = undo.pop_all()

    def _allocated(self, undo: ExitStack, size: int) -> int:
        """The address of so many bytes on the GPU, 0 for none."""
        if size == 0:
            return 0
        allocation = self._cuda.mem_alloc(size)
        undo.callback(allocation.free)
        return int(allocation)

    def run(self, images: Images, results: Mapping[str, npt.NDArray[Any]]) -> None:
        """Score at most one batch into `results`; the rest of the batch is zeros, and is ignored."""
        n, cuda = len(images), self._cuda
        self._host[INPUT][:n] = images
        self._host[INPUT][n:] = 0
        try:
            try:
                cuda.memcpy_htod_async(self._device[INPUT], self._host[INPUT], self._stream)
                self._runner.enqueue(self._device)
                for name in self.outputs:
                    cuda.memcpy_dtoh_async(self._host[name], self._device[name], self._stream)
            finally:  # what is under way uses memory that the next call writes, and that closing frees
                self._stream.synchronize()
        except cuda.Error as error:
            raise MachineError(
                f"the GPU fails ({first_line(error)}): see nvidia-smi and dmesg, or use --backend openvino"
            ) from error
        for name, array in results.items():
            np.copyto(array, self._host[name][:n])

    def close(self) -> None:
        """Free all of it."""
        with suppress(self._cuda.Error):
            self._stream.synchronize()
        self._undo.close()


@contextmanager
def _cascade(
    opened: Open, batches: Mapping[Model, int], operating: OperatingPoint, device: int
) -> Iterator[Cascade]:
    with primary_context(device) as context, ExitStack() as stack:
        runners = {}
        for model, batch in batches.items():
            loaded = stack.enter_context(opened(model))
            runners[model] = stack.enter_context(HostRunner(loaded, batch, context))
        yield Cascade(runners["classifier"], runners["segmenter"], operating)


def _host_outputs(outputs: Iterable[str]) -> tuple[str, ...]:
    """What a runner gives for the outputs of a plan: bits become masks and their pixels."""
    names: list[str] = []
    for name in outputs:
        names += ["mask", "mask_pixels"] if name == "mask_bits" else [name]
    return tuple(names)
