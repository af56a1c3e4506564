"""`tensorrt`, its part that runs plans, over the double: it refuses what TensorRT refuses, in TensorRT's way.

None and False, with the reason in the log. What TensorRT does not look at and fails of later is a finding.
Names and signatures are those that TensorRT 10.8 to 11.4 and TensorRT-RTX share.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

from tests.double.compute import Computer, Tensor, computer, read_plan
from tests.double.double import Double
from tests.double.faults import INVALID, CudaFailure
from tests.double.hosts import Host, Moment, caller
from tests.double.memory import Block, Reach
from tests.double.models import WORKSPACE, enqueue_execution, scratch_reach

T = TypeVar("T")

VERSION = "10.8.0.43"

TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"], start=0)
TensorFormat = enum.Enum("TensorFormat", ["LINEAR"], start=0)
TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"], start=0)
DataType = enum.Enum("DataType", {"FLOAT": 0, "INT32": 3, "UINT8": 5})
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"], start=0
)
Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)

_TYPES = {"float32": DataType.FLOAT, "int32": DataType.INT32, "uint8": DataType.UINT8}


class Dims(tuple[int, ...]):
    """A shape."""


class ILogger:
    """What takes messages: to be derived from."""

    Severity = Severity

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class Runtime:
    """What loads plans."""

    _double: Double

    def __init__(self, logger: ILogger) -> None:
        if not isinstance(logger, ILogger):
            raise TypeError("__init__(): incompatible constructor arguments")
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        def body(host: Host) -> ICudaEngine:
            read = read_plan(bytes(serialized_engine))
            if read is None:
                raise CudaFailure(INVALID, "the plan is corrupt")
            return ICudaEngine(self._double, self, computer(read[0]), read[1])

        return said(self._double, self.logger, "deserialize_cuda_engine", body)


class _Counted:
    """What is counted while it lives and, going, takes the device's memory with it."""

    _word = ""

    def __init__(self, double: Double, state: Block) -> None:
        self._double = double
        self._state = state
        double.counts[self._word] += 1

    def __del__(self) -> None:
        if hasattr(self, "_state"):
            state, double, word = self._state, self._double, self._word

            def bury(moment: Moment) -> None:
                double.counts[word] -= 1
                if moment.context is None:
                    double.add("context", f"one of the {word} goes without a current context")
                double.release(state, moment)

            double.drop(bury)


class ICudaEngine(_Counted):
    """A loaded plan: one profile, of one batch size."""

    _word = "engines"

    def __init__(self, double: Double, runtime: Runtime, graph: Computer, batch: int) -> None:
        super().__init__(double, Block("state", "an engine", 0, 1))
        self._runtime = runtime
        self._graph = graph
        self._batch = batch
        self._has_given_profile = False

    num_optimization_profiles = 1
    device_memory_size_v2 = WORKSPACE

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return self._tensors[index].name

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if self._tensor(name) is self._graph.input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return _TYPES[self._tensor(name).dtype.name]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims((-1, *self._tensor(name).shape))

    def get_tensor_format(self, name: str) -> Any:
        return TensorFormat.LINEAR

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        return [Dims((self._batch, *self._tensor(name).shape))] * 3

    def create_execution_context(
        self, strategy: Any = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        def body(host: Host) -> IExecutionContext:
            self._double.refuse_when_steady("create_execution_context")
            if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
                self._double.add("refusal", f"an execution context with memory of its own ({caller()})")
                raise CudaFailure(INVALID, "the double has USER_MANAGED alone")
            return IExecutionContext(self)

        return said(self._double, self._runtime.logger, "create_execution_context", body)

    def _tensor(self, name: str) -> Tensor:
        """That input or output."""
        return next(tensor for tensor in self._tensors if tensor.name == name)

    @property
    def _names(self) -> list[str]:
        """Of all inputs and outputs."""
        return [tensor.name for tensor in self._tensors]

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return (self._graph.input, *self._graph.outputs)


class IExecutionContext(_Counted):
    """What executes a plan. Only the first of an engine has its profile without asking."""

    _word = "execution contexts"

    def __init__(self, engine: ICudaEngine) -> None:
        super().__init__(engine._double, Block("state", f"the execution context of {caller()}", 0, 1))
        self.engine = engine
        self.active_optimization_profile = -1 if engine._has_given_profile else 0
        engine._has_given_profile = True
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] | None = None
        self._scratch: Reach | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        def body(host: Host) -> bool:
            queue = self._double.device.queues.get(stream_handle)
            if profile_index != 0 or queue is None:
                raise CudaFailure(INVALID, "no such profile or stream")
            self.active_optimization_profile = profile_index
            state = Reach(self._state, 0, 1, True)
            self._double.device.enqueue(host, queue, "set_optimization_profile_async", [state])
            return True

        return self._says("set_optimization_profile_async", body)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        def body(host: Host) -> bool:
            engine = self.engine
            if name != engine._graph.input.name:
                raise CudaFailure(INVALID, f"{name} is no input")
            if self.active_optimization_profile < 0:
                raise CudaFailure(INVALID, "no optimization profile is set")
            if tuple(shape) != (engine._batch, *engine._graph.input.shape):
                raise CudaFailure(INVALID, f"the shape {tuple(shape)} lies outside the profile")
            self._shape = tuple(shape)
            return True

        return self._says("set_input_shape", body)

    def get_tensor_shape(self, name: str) -> Dims:
        n = -1 if self._shape is None else self._shape[0]
        return Dims((n, *self.engine._tensor(name).shape))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if type(memory) is not int:
            raise TypeError("set_tensor_address(): incompatible function arguments")

        def body(host: Host) -> bool:
            if name not in self.engine._names:
                raise CudaFailure(INVALID, f"there is no tensor {name}")
            self._addresses[name] = memory
            return True

        return self._says("set_tensor_address", body)

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        if type(memory) is not int or type(size) is not int:
            raise TypeError("set_device_memory(): incompatible function arguments")

        def body(host: Host) -> bool:
            if size < WORKSPACE:
                raise CudaFailure(INVALID, f"{size} bytes are too few")
            self._scratch = scratch_reach(self._double, "set_device_memory", memory, WORKSPACE)
            return True

        self._says("set_device_memory", body)

    def execute_async_v3(self, stream_handle: int) -> bool:
        def body(host: Host) -> bool:
            missing = [name for name in self.engine._names if not self._addresses.get(name)]
            if missing:
                raise CudaFailure(INVALID, f"no address is set for {', '.join(missing)}")
            if self._shape is None or self._scratch is None:
                raise CudaFailure(INVALID, "no input shape or no device memory is set")
            enqueue_execution(
                self._double,
                host,
                stream_handle,
                "execute_async_v3",
                self.engine._graph,
                self.engine._batch,
                self._addresses,
                (self._scratch, Reach(self._state, 0, 1, True)),
            )
            return True

        return self._says("execute_async_v3", body)

    def _says(self, name: str, body: Callable[[Host], bool]) -> bool:
        return bool(said(self._double, self.engine._runtime.logger, name, body))


def said(double: Double, logger: ILogger, name: str, body: Callable[[Host], T]) -> T | None:
    """One call: what `body` gives, or None where it fails, with the reason in the log."""
    try:
        with double.call(name) as host:
            return body(host)
    except CudaFailure as failure:
        logger.log(Severity.ERROR, f"{name}: {failure.message or failure.code.text}")
        return None


def make_tensorrt(double: Double) -> ModuleType:
    """The module of that double."""
    module: Any = ModuleType("tensorrt")
    module.__version__ = VERSION
    for shared in (
        DataType, Dims, ExecutionContextAllocationStrategy, ICudaEngine, IExecutionContext, ILogger,
        TensorFormat, TensorIOMode, TensorLocation,
    ):  # fmt: skip
        setattr(module, shared.__name__, shared)
    module.Runtime = type("Runtime", (Runtime,), {"_double": double})
    return module  # type: ignore[no-any-return]
