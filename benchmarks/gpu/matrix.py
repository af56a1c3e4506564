"""How fast this GPU multiplies float16 matrices: a large product by whatever library is here.

The best of them is what the models are held against. Numbers are random: on zeros a chip is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from benchmarks.gpu.clock import Mark
from benchmarks.gpu.settings import GPU
from engine.errors import MachineError
from engine.gpu.device import Device, Stream, open_device
from engine.plans.toolkit import Toolkit, build_targets, load_toolkit
from engine.runners.base import first_line
from engine.runners.device import visible_gpu

SIDE: Final = 8192
OPERATIONS: Final = 2 * SIDE**3
BYTES: Final = SIDE * SIDE * 2
_AT_A_TIME: Final = 10


def by_torch(seconds: float) -> float:
    """Operations a second by PyTorch, which asks cuBLAS."""
    from benchmarks.gpu.torch_rates import matrix_rate

    return float(matrix_rate(seconds))


def by_onnxruntime(seconds: float) -> float:
    """Operations a second by ONNX Runtime's CUDA provider, which asks cuBLAS too."""
    with open_device(GPU) as device:
        stream = device.stream()
        run = _session(stream, _operands(device, stream))
        return _rate(stream, run, seconds)


def by_tensorrt(seconds: float) -> float:
    """Operations a second by TensorRT, which chooses a kernel of its own."""
    toolkit = load_toolkit("tensorrt")
    visible_gpu(GPU)
    plan = matrix_plan(toolkit)
    with open_device(GPU) as device:
        stream = device.stream()
        operands = _operands(device, stream)
        context, kept = _context(toolkit, plan)
        for name, address in operands.items():
            if not context.set_tensor_address(name, address):
                raise MachineError(f"TensorRT refuses the address of {name}")

        def run() -> None:
            if not context.execute_async_v3(stream.handle):
                raise MachineError("TensorRT does not multiply")

        rate = _rate(stream, run, seconds)
        del kept
        return rate


def matrix_graph() -> bytes:
    """An ONNX graph that is one product of two float16 matrices."""
    from onnx import TensorProto, helper

    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT16, [SIDE, SIDE]) for name in "abc"}
    product = helper.make_node("MatMul", ["a", "b"], ["c"], name="product")
    graph = helper.make_graph([product], "matrix", [tensors["a"], tensors["b"]], [tensors["c"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    made: bytes = model.SerializeToString()
    return made


def matrix_plan(toolkit: Toolkit) -> bytes:
    """The same as a plan. MachineError where it cannot be built."""
    trt = toolkit.module
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(matrix_graph()):
        raise MachineError(f"{toolkit.title} cannot parse a matrix product: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    if toolkit.flavour == "tensorrt-rtx":
        targets = build_targets(toolkit)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            capability = trt.ComputeCapability.__members__["SM" + target.replace(".", "")]
            config.set_compute_capability(capability, index)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise MachineError(f"{toolkit.title} cannot build a matrix product")
    return bytes(memoryview(memory))


def _context(toolkit: Toolkit, plan: bytes) -> tuple[Any, tuple[Any, ...]]:
    """The execution context, and what has to live as long as it does."""
    trt = toolkit.module
    logger = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    context = None if engine is None else engine.create_execution_context()
    if context is None:
        raise MachineError(f"{toolkit.title} cannot load a matrix product")
    return context, (engine, runtime, logger)


def _operands(device: Device, stream: Stream) -> dict[str, int]:
    """Addresses of a and b, random, and c."""
    addresses = {name: device.memory(BYTES) for name in "abc"}
    numbers = device.pagelocked((SIDE, SIDE), np.float16)
    rng = np.random.default_rng(0)
    for name in "ab":
        numbers[:] = rng.standard_normal((SIDE, SIDE), np.float32)
        stream.copy_in(addresses[name], numbers)
        stream.wait()
    return addresses


def _session(stream: Stream, operands: Mapping[str, int]) -> Callable[[], None]:
    import onnxruntime as ort

    provider = "CUDAExecutionProvider"
    if provider not in ort.get_available_providers():
        raise MachineError(f"ONNX Runtime {ort.__version__} has no CUDA provider")
    ort.preload_dlls()
    options = {"device_id": str(GPU), "user_compute_stream": str(stream.handle)}
    try:
        session = ort.InferenceSession(matrix_graph(), providers=[(provider, options)], enable_fallback=0)
    except Exception as error:  # the runtime's errors share no base of their own
        raise MachineError(f"ONNX Runtime cannot multiply on the GPU: {first_line(error)}") from error
    if provider not in session.get_providers():
        raise MachineError(f"ONNX Runtime {ort.__version__} cannot load its CUDA provider")
    binding = session.io_binding()
    for name in "ab":
        binding.bind_input(name, "cuda", GPU, np.float16, (SIDE, SIDE), operands[name])
    binding.bind_output("c", "cuda", GPU, np.float16, (SIDE, SIDE), operands["c"])
    settings = ort.RunOptions()
    settings.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return lambda: session.run_with_iobinding(binding, settings)


def _rate(stream: Stream, run: Callable[[], None], seconds: float) -> float:
    for _ in range(_AT_A_TIME):
        run()
    stream.wait()
    count, deadline = 0, time.monotonic() + seconds
    begun = Mark(stream)
    while count == 0 or time.monotonic() < deadline:
        for _ in range(_AT_A_TIME):
            run()
        count += _AT_A_TIME
        stream.wait()
    ended = Mark(stream)
    ended.wait()
    return count * OPERATIONS / begun.until(ended)
