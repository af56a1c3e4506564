"""A plan of the cache on a GPU, by TensorRT or TensorRT-RTX.

Only what TensorRT 10.8 to 11.4 and TensorRT-RTX share is used; what one of them lacks is under its flavour.
None and False, not exceptions, are how TensorRT says no, with the reason in its log; what returns nothing
says it there alone. The module is known only at run time: a function that needs its names imports them for
the type checker alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from engine.driver import Gpu
from engine.errors import MachineError, TumorscanError, UsageError
from engine.plans.cache import CachedPlan, PlanCache
from engine.plans.half import PLAN_CONTRACT
from engine.plans.messages import Messages, make_logger
from engine.plans.sidecar import PlanRecord
from engine.plans.toolkit import Toolkit
from engine.runners.base import INPUT, SIDE, OutputSpec, Precision
from engine.runners.device import visible_gpu
from engine.text import shown

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

_ALIGNMENT: Final = 256
"""Of scratch memory, in bytes, as TensorRT wants it."""
_TYPES: Final[Mapping[str, str]] = {"uint8": "UINT8", "float32": "FLOAT"}


class TensorRtModel:
    """A plan loaded on GPU `device` of those that this process sees, whose CUDA context is current.

    That context is to be current in every call; leave it after all runners are closed. The bytes come from
    the cache alone, which checks whose they are and their sha256, and are checked against the model's
    contract once they are loaded. Contexts that never run at the same time may share one workspace; what
    TensorRT-RTX compiles for this GPU is kept in the cache for the next time.

    Raises:
        MachineError: no driver, no such GPU, or a plan that TensorRT cannot load here.
        UsageError: a plan that is not to be trusted, failed its proof, or is not what its record says.
    """

    precision: Precision = "fp16"

    def __init__(self, toolkit: Toolkit, cache: PlanCache, plan: CachedPlan, device: int = 0) -> None:
        record = plan.record
        if record.flavour != toolkit.flavour:
            raise ValueError(f"a plan of {record.flavour} was given to {toolkit.flavour}")
        gpu = visible_gpu(device)  # first: without a driver a Runtime comes into being and crashes later
        self.name: str = toolkit.flavour
        self.version = toolkit.version
        self.model = record.model
        self.outputs: Mapping[str, OutputSpec] = {
            name: PLAN_CONTRACT[record.model][name] for name in record.outputs
        }
        self.identity: Mapping[str, str | int] = {"plan_sha256": record.plan_sha256}
        self._toolkit = toolkit
        self._batch = record.batch
        self._heard, logger = _listening(toolkit)
        self._heard.forget()
        self._runtime = _runtime(toolkit, logger, self._heard)
        self._engine = self._runtime.deserialize_cuda_engine(cache.read(plan))
        if self._engine is None:
            raise MachineError(
                f"{toolkit.title} {toolkit.version} cannot load {shown(plan.path)}: {self._heard.reason()}; "
                "build it again on this machine: tumorscan build --rebuild"
            )
        if fault := _fault(self._engine, plan.record):
            del self._engine, self._runtime  # here, where the context is current, not with the error
            raise UsageError(f"{shown(plan.path)} {fault}: build it again with tumorscan build --rebuild")
        compiles = toolkit.flavour == "tensorrt-rtx"
        self._kernels = _CompiledKernels(cache, plan, gpu) if compiles else None

    def workspace(self, batch: int) -> int:
        """See `DeviceModel.workspace`."""
        self._check_batch(batch)
        return int(self._engine.device_memory_size_v2)

    def make(self, stream: int, batch: int, workspace: int) -> TensorRtRunner:
        """See `DeviceModel.make`."""
        if stream == 0:
            raise ValueError("the null stream waits for all others: make a stream of its own")
        if workspace % _ALIGNMENT:
            raise ValueError(f"the workspace's address is no multiple of {_ALIGNMENT}")
        self._check_batch(batch)
        self._heard.forget()
        context = self._new_context()
        if refusal := self._refusal(context, stream, workspace):
            del context  # as above
            raise self._refused(refusal)
        return TensorRtRunner(context, (INPUT, *self.outputs), stream, batch, self._heard)

    def _check_batch(self, batch: int) -> None:
        if batch != self._batch:
            raise UsageError(
                f"the {self.model}'s plan is for batches of {self._batch} slices, not of {batch}: "
                f"use --batch {self._batch}, or build another with tumorscan build --batch {batch}"
            )

    def _new_context(self) -> trt.IExecutionContext:
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = self._toolkit.module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._kernels is None:
            context = self._engine.create_execution_context(strategy)
        else:
            context = self._engine.create_execution_context(self._specialised(strategy, self._kernels))
        if context is None:
            raise self._refused("makes no execution context")
        return context

    def _specialised(self, strategy: Any, kernels: _CompiledKernels) -> Any:
        """How TensorRT-RTX is to run: kernels compiled for the batch before its first run, and kept."""
        engine: Any = self._engine  # TensorRT 10.8 has no such configuration
        config = engine.create_runtime_config()
        if config is None:
            raise self._refused("makes no runtime configuration")
        config.set_execution_context_allocation_strategy(strategy)
        strategies = self._toolkit.module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if not config.set_runtime_cache(kernels.opened(config)):
            raise self._refused("takes no runtime cache")
        return config

    def _refusal(self, context: trt.IExecutionContext, stream: int, workspace: int) -> str:
        """Give a new context all that it needs but addresses; what it refuses, "" where it takes all."""
        # The first context alone has the profile by itself.
        if context.active_optimization_profile != 0 and not context.set_optimization_profile_async(0, stream):
            return "refuses the plan's profile"
        if not context.set_input_shape(INPUT, (self._batch, SIDE, SIDE, 3)):
            return f"refuses a batch of {self._batch}"
        size = self.workspace(self._batch)
        self._heard.forget()
        context.set_device_memory(workspace, size)
        return f"refuses {size:,} bytes of scratch memory" if self._heard.errors() else ""

    def _refused(self, what: str) -> MachineError:
        return MachineError(f"{self._toolkit.title} {what} for the {self.model}: {self._heard.reason()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kernels, self._kernels = self._kernels, None
        if kernels is not None and error is None:
            kernels.keep()
        del kernels, self._engine, self._runtime


class TensorRtRunner:
    """One execution context. It must never be in flight twice: who drives the stream waits in between."""

    def __init__(
        self, context: Any, tensors: tuple[str, ...], stream: int, batch: int, heard: _Heard
    ) -> None:
        self.batch = batch
        self._context: trt.IExecutionContext | None = context
        self._tensors = tensors
        self._stream = stream
        self._heard = heard

    def enqueue(self, pointers: Mapping[str, int]) -> None:
        """See `DeviceRunner.enqueue`."""
        if self._context is None:
            raise ValueError("enqueue() was called on a closed runner")
        for name in self._tensors:
            if not self._context.set_tensor_address(name, int(pointers[name])):
                raise MachineError(f"TensorRT refuses the address of {name}: {self._heard.reason()}")
        if not self._context.execute_async_v3(self._stream):
            raise MachineError(f"TensorRT cannot run on this GPU any more: {self._heard.reason()}")

    def close(self) -> None:
        """See `DeviceRunner.close`."""
        self._context = None


class _CompiledKernels:
    """What TensorRT-RTX compiles of a plan for one GPU: one runtime cache, of all contexts of the plan."""

    def __init__(self, cache: PlanCache, plan: CachedPlan, gpu: Gpu) -> None:
        self._cache, self._plan, self._gpu = cache, plan, gpu
        self._kept = b""
        self._runtime_cache: Any = None

    def opened(self, config: Any) -> Any:
        """The runtime cache, made by the first configuration; None, which is refused, where it makes none."""
        if self._runtime_cache is None:
            self._runtime_cache = config.create_runtime_cache()
            kept = self._cache.runtime_cache(self._plan, self._gpu) or b""
            # One of another driver or TensorRT-RTX is refused and leaves the runtime cache empty.
            if kept and self._runtime_cache is not None and self._runtime_cache.deserialize(kept):
                self._kept = kept
        return self._runtime_cache

    def keep(self) -> None:
        """Put what was compiled since into the plan cache; one that takes nothing is no reason to fail."""
        memory = None if self._runtime_cache is None else self._runtime_cache.serialize()
        content = b"" if memory is None else bytes(memoryview(memory))
        self._runtime_cache = None
        if not content or content == self._kept:
            return
        try:
            self._cache.keep_runtime_cache(self._plan, self._gpu, content)
        except TumorscanError as error:
            log.warning("kernels are compiled again next time: %s", error)


class _Heard(Messages):
    """TensorRT's messages while it runs: passed on to the program's log, the last errors kept."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))

    def write(self, severity: str, text: str) -> None:
        """Take one message; errors reach the user by the exception that follows them."""
        super().write(severity, text)
        log.log(logging.DEBUG if severity == "INFO" else logging.INFO, "%s: %s", severity, text)

    def errors(self) -> str:
        """The last errors in one line, "" where there was none."""
        with self._lock:
            return "; ".join(dict.fromkeys(self._errors))

    def reason(self) -> str:
        """The last errors in one line."""
        return self.errors() or "it does not say why"

    def forget(self) -> None:
        """Begin anew: errors of another plan explain nothing."""
        with self._lock:
            self._errors.clear()


@cache
def _listening(toolkit: Toolkit) -> tuple[_Heard, Any]:
    """The one logger of this process: TensorRT keeps the first it is given while any of its objects lives."""
    heard = _Heard()
    return heard, make_logger(toolkit, heard)


def _runtime(toolkit: Toolkit, logger: Any, heard: _Heard) -> trt.Runtime:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = toolkit.module
    try:
        return trt.Runtime(logger)
    except (TypeError, RuntimeError) as error:  # pybind11's ways to say that C++ made nothing
        raise MachineError(f"{toolkit.title} does not start: {heard.reason()}") from error


def _fault(engine: trt.ICudaEngine, record: PlanRecord) -> str:
    """What of the plan's tensors and batch is not as its record says, "" where all is."""
    n = record.batch
    due = {INPUT: f"INPUT UINT8 {(n, SIDE, SIDE, 3)} LINEAR DEVICE"}
    for name in record.outputs:
        spec = PLAN_CONTRACT[record.model][name]
        due[name] = f"OUTPUT {_TYPES[spec.dtype.name]} {(n, *spec.shape)} LINEAR DEVICE"
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: _described(engine, name, n) for name in names}
    for name in sorted(due.keys() | found.keys()):
        if due.get(name) != found.get(name):
            return f"has {name!r} as {found.get(name, 'nothing')} where {due.get(name, 'nothing')} is due"
    batches = {_sizes(dims)[:1] for dims in engine.get_tensor_profile_shape(INPUT, 0)}
    if engine.num_optimization_profiles != 1 or batches != {(n,)}:
        return f"is for other batches than of {n} slices, which its record says"
    return ""


def _described(engine: trt.ICudaEngine, name: str, n: int) -> str:
    """A tensor in words; the leading -1, which the profile makes n, is given as n."""
    shape = _sizes(engine.get_tensor_shape(name))
    if shape[:1] == (-1,):
        shape = (n, *shape[1:])
    return (
        f"{engine.get_tensor_mode(name).name} {engine.get_tensor_dtype(name).name} {shape} "
        f"{engine.get_tensor_format(name).name} {engine.get_tensor_location(name).name}"
    )


def _sizes(dims: trt.Dims) -> tuple[int, ...]:
    return tuple(dims[index] for index in range(len(dims)))
