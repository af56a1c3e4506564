"""An FP16 ONNX graph made into a plan by TensorRT or TensorRT-RTX, for one batch size.

Only what TensorRT 10.8 to 11.4 and TensorRT-RTX share is used; what one of them lacks is under its flavour.
None, False and -1, not exceptions, are how TensorRT says no, with the reason in its log. The module is known
only at run time: a function that needs its names imports them for the type checker alone.
"""

from __future__ import annotations

import time
import traceback
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from engine.bundle import Model
from engine.driver import probe_driver
from engine.errors import MachineError, UsageError
from engine.plans.layers import Layer, engine_layers, network_layers
from engine.plans.messages import Messages, Progress, make_logger, make_monitor
from engine.plans.toolkit import Toolkit, build_targets
from engine.runners.base import INPUT, SIDE

if TYPE_CHECKING:
    import tensorrt as trt

T = TypeVar("T")

MAX_BATCH: Final = 512
"""At 64 channels of 256x256 a tensor then has 2^31 elements: TensorRT ends there, by a crash at times."""
MAX_LEVEL: Final = 5

_POLL_SECONDS = 0.1
_CONVOLUTIONS = frozenset({"CONVOLUTION", "DECONVOLUTION"})


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build. `graph` is the serialised FP16 ONNX of `model`, `batch` the plan's only batch size.

    `workspace` is the builder's scratch memory in bytes and `level` its optimisation level 0..5, TensorRT's
    own choice where None. `timing_cache` is what an earlier `Built` gave, for TensorRT alone. `log` is the
    file that takes TensorRT's own messages. `UsageError` for a number that makes no sense.
    """

    model: Model
    graph: bytes
    batch: int
    workspace: int | None
    level: int | None
    timing_cache: bytes | None
    log: Path

    def __post_init__(self) -> None:
        refuse_nonsense(self.batch, self.workspace, self.level)


@dataclass(frozen=True, slots=True)
class Built:
    """A plan and what is known of it.

    `targets` are the compute capabilities it is for, `layers` those of the "engine" where it could be loaded
    here, else those of the parsed "network": `layers_of` says which. `timing_cache` is None for TensorRT-RTX.
    `seconds` is wall time.
    """

    plan: bytes
    layers: tuple[Layer, ...]
    layers_of: Literal["engine", "network"]
    targets: tuple[str, ...]
    timing_cache: bytes | None
    seconds: float


def refuse_nonsense(batch: int, workspace: int | None, level: int | None) -> None:
    """`UsageError` for numbers that no plan can be built with (see `BuildRequest`)."""
    if not 1 <= batch <= MAX_BATCH:
        raise UsageError(f"a batch of {batch} slices cannot be built: choose 1 to {MAX_BATCH}")
    if level is not None and not 0 <= level <= MAX_LEVEL:
        raise UsageError(f"there is no optimisation level {level}: choose 0 to {MAX_LEVEL}")
    if workspace is not None and not 1 <= workspace < 2**63:
        raise UsageError(f"a workspace of {workspace} bytes makes no sense: choose 1 or more")


def build_plan(toolkit: Toolkit, request: BuildRequest, progress: Progress | None = None) -> Built:
    """Parse, profile and build; minutes with TensorRT, which makes a CUDA context in this process.

    `progress` is called from another thread with the phase's name and how much of the build is done (0..1);
    what it raises ends the build and is raised here, and so does Ctrl-C.

    Raises:
        UsageError: the graph does not parse (its nodes are named), takes another input, or is not FP16.
        MachineError: no driver for TensorRT, a log that cannot be written, or TensorRT cannot build it.
    """
    began = time.monotonic()
    targets = build_targets(toolkit)
    try:
        with Messages(request.log) as messages:
            plan, parsed, loaded, cache = _build(toolkit, request, targets, messages, progress)
    except BaseException as error:
        _let_go(error)
        raise
    seconds = time.monotonic() - began
    return Built(plan, loaded or parsed, "engine" if loaded else "network", targets, cache, seconds)


def _let_go(error: BaseException) -> None:
    """Free what the error's frames hold: TensorRT keeps its first logger while any of its objects lives."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        caller: FrameType | None = frame
        while caller is not None:
            with suppress(RuntimeError):  # it is still running
                caller.clear()
            caller = caller.f_back


def _build(
    toolkit: Toolkit,
    request: BuildRequest,
    targets: tuple[str, ...],
    messages: Messages,
    progress: Progress | None,
) -> tuple[bytes, tuple[Layer, ...], tuple[Layer, ...], bytes | None]:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = toolkit.module
    logger = make_logger(toolkit, messages)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind11's ways to say that C++ made nothing
        raise MachineError(f"{toolkit.title} does not start: {messages.reason()}") from error
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = _made(builder.create_network(strongly_typed), "network", messages)
    parser = trt.OnnxParser(network, logger)  # owns the weights, so it lives until the plan is built
    if not parser.parse(request.graph):
        raise UsageError(
            f"{toolkit.title} cannot parse the {request.model}: {_parse_errors(parser, messages)}; "
            "export the bundle again or choose another"
        )
    parsed = network_layers(network)
    _check(network, parsed, request.model)
    config = _configured(toolkit, builder, request, messages)
    _aim(toolkit, config, targets, messages)
    timing_cache = _timing_cache(config, request, messages) if toolkit.flavour == "tensorrt" else None
    monitor = make_monitor(toolkit, messages, progress)  # not kept alive by the configuration
    config.progress_monitor = monitor
    memory = _serialised(builder, network, config, messages)
    messages.raise_failure()
    if memory is None:
        raise MachineError(
            f"{toolkit.title} cannot build the {request.model} for {request.batch} slices: "
            f"{messages.reason()}; a smaller --batch or a larger --workspace may help"
        )
    plan = _copied(memory)
    loaded = _loaded_layers(toolkit, logger, plan, messages)
    if timing_cache is None:
        return plan, parsed, loaded, None
    return plan, parsed, loaded, _copied(_made(timing_cache.serialize(), "timing cache", messages))


def _made(thing: T | None, name: str, messages: Messages) -> T:
    if thing is None:
        raise MachineError(f"TensorRT makes no {name}: {messages.reason()}")
    return thing


def _copied(memory: trt.IHostMemory) -> bytes:
    buffer: Any = memory  # the stubs do not know that it is one
    return bytes(memoryview(buffer))


def _parse_errors(parser: trt.OnnxParser, messages: Messages) -> str:
    said = []
    for index in range(parser.num_errors):
        error: trt.ParserError = parser.get_error(index)
        name = error.node_name() or f"number {error.node()}"
        node = f"node {name} ({error.node_operator()}): " if error.node() >= 0 else ""
        said.append(node + " ".join(error.desc().split()))
    return "; ".join(said) or messages.reason()


def _check(network: trt.INetworkDefinition, layers: tuple[Layer, ...], model: Model) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    found = ", ".join(f"{tensor.name} {tensor.dtype.name} {tensor.shape}" for tensor in inputs)
    if found != f"{INPUT} UINT8 {(-1, SIDE, SIDE, 3)}":
        raise UsageError(
            f"the graph of the {model} takes {found or 'nothing'} where {INPUT} UINT8 (N, {SIDE}, {SIDE}, 3) "
            "is due: export the bundle again or choose another"
        )
    wide = [layer for layer in layers if layer.kind in _CONVOLUTIONS and layer.precision != "FP16"]
    if wide:
        raise UsageError(
            f"the graph of the {model} is not FP16: {len(wide)} of its convolutions are not, the first is "
            f"{wide[0].name} in {wide[0].precision}"
        )


def _configured(
    toolkit: Toolkit, builder: trt.Builder, request: BuildRequest, messages: Messages
) -> trt.IBuilderConfig:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = toolkit.module
    config = _made(builder.create_builder_config(), "configuration", messages)
    profile = _made(builder.create_optimization_profile(), "profile", messages)
    shape = trt.Dims([request.batch, SIDE, SIDE, 3])
    profile.set_shape(INPUT, shape, shape, shape)
    if not profile or config.add_optimization_profile(profile) < 0:
        raise MachineError(f"{toolkit.title} refuses a batch of {request.batch}: {messages.reason()}")
    if request.workspace is not None:
        pool = trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, request.workspace)
        if config.get_memory_pool_limit(pool) != request.workspace:
            raise MachineError(
                f"{toolkit.title} refuses a workspace of {request.workspace} bytes: {messages.reason()}"
            )
    if request.level is not None:
        config.builder_optimization_level = request.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    return config


def _aim(toolkit: Toolkit, config: Any, targets: tuple[str, ...], messages: Messages) -> None:
    """Name the GPUs that a plan of TensorRT-RTX is for. TensorRT has no such names: it takes the one here."""
    if toolkit.flavour == "tensorrt":
        return
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = toolkit.module.ComputeCapability.__members__["SM" + target.replace(".", "")]
        if not config.set_compute_capability(capability, index):
            raise MachineError(f"{toolkit.title} refuses GPUs of {target}: {messages.reason()}")


def _timing_cache(config: trt.IBuilderConfig, request: BuildRequest, messages: Messages) -> trt.ITimingCache:
    for blob in (request.timing_cache, b""):
        cache = None if blob is None else config.create_timing_cache(blob)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
        if blob:
            messages.write("WARNING", "tumorscan: the timing cache is of another TensorRT or GPU; begun anew")
    raise MachineError(f"TensorRT makes no timing cache: {messages.reason()}")


def _serialised(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, messages: Messages
) -> trt.IHostMemory | None:
    """Build in another thread: in this one a Ctrl-C would be raised inside a callback, and be swallowed."""
    with ThreadPoolExecutor(1, "tensorrt-build") as worker:
        worker.submit(int).result()  # from here on the thread exists, so leaving waits for it
        try:
            plan = worker.submit(builder.build_serialized_network, network, config)
            while not plan.done():  # a signal that another thread took is seen only when this one wakes
                wait([plan], timeout=_POLL_SECONDS)
            return plan.result()
        except BaseException as error:
            messages.stop(error)
            raise


def _loaded_layers(
    toolkit: Toolkit, logger: trt.ILogger, plan: bytes, messages: Messages
) -> tuple[Layer, ...]:
    """The engine's own layers where this machine can load it; a portable plan may be for other machines."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = toolkit.module
    try:
        probe_driver()
    except MachineError:
        return ()
    runtime = _made(trt.Runtime(logger), "runtime", messages)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is not None:
        return engine_layers(engine, toolkit)
    if toolkit.flavour == "tensorrt":
        raise MachineError(f"TensorRT cannot load the plan that it has just built: {messages.reason()}")
    return ()
