"""One model on OpenVINO's CPU plugin.

A pool of infer requests with blocking calls, not an AsyncInferQueue: its callbacks run in OpenVINO's threads,
where they would compete for the interpreter lock, and each would still need something to wake the caller.
Callers of both models block here in their own threads without the lock, so whichever model has slices waiting
takes the cores. One call with many slices keeps all streams busy as well: its pieces are started as requests
become idle and collected in order.

The model is reshaped to a fixed number of slices a request, the last piece padded: kernels are chosen by
shape, so a result would otherwise depend on how many slices happened to be in the call.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np

from engine.bundle import Model
from engine.errors import MachineError, UsageError
from engine.runners.base import (
    CONTRACT,
    DEFAULT_OUTPUTS,
    INPUT,
    SIDE,
    Images,
    Outputs,
    Precision,
    allocate,
    check_images,
    first_line,
)

MIN_REQUESTS = 2
"""One is filled and read back while another computes."""

_CLOSED = "infer() was called on a closed runner"
_ELEMENT_TYPES: Mapping[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Of what a graph leaves in float: an int8 graph says by itself what is int8."""


class OpenVinoRunner:
    """A graph compiled for the CPU's throughput, in the precision asked for and no other.

    `batch` is the fixed number of slices a request, `threads` the cores to use (None: all). `UsageError` for
    a graph that will not load or breaks the contract, `MachineError` without OpenVINO or bfloat16.
    """

    name = "openvino"

    def __init__(
        self,
        graph: Path,
        model: Model,
        precision: Precision = "fp32",
        *,
        batch: int = 1,
        threads: int | None = None,
        outputs: tuple[str, ...] | None = None,
    ) -> None:
        self.precision = precision
        self.outputs = outputs or DEFAULT_OUTPUTS[model]
        self._model = model
        self._batch = batch
        self.options: Mapping[str, str | int] = {**_config(precision, threads), "batch": batch}
        compiled = compiled_for_throughput(
            graph, model, precision, batch=batch, threads=threads, outputs=self.outputs
        )
        self.version: str = version()
        requests = max(MIN_REQUESTS, compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.concurrency: int = requests
        self._idle = [_Request(compiled.create_infer_request(), batch) for _ in range(requests)]
        self._waiting: deque[SimpleQueue[_Request | None]] = deque()
        self._closed = False
        self._lock = threading.Lock()

    def infer(self, images: Images) -> Outputs:
        """See `Runner.infer`."""
        check_images(images)
        results = allocate(self._model, self.outputs, len(images))
        running: deque[_Request] = deque()
        try:
            for start in range(0, len(images), self._batch):
                request = self._claim(running, results)
                running.append(request)
                request.start(images, start)
            while running:
                self._collect(running, results)
        finally:
            while running:
                self._give_back(running.popleft())
        return results

    def _claim(self, running: deque[_Request], results: Outputs) -> _Request:
        """An idle request. One that this call has in flight is finished before anybody is waited for.

        Two calls that each held one and waited for the other's would wait for ever.
        """
        while True:
            with self._lock:
                if self._closed:
                    raise ValueError(_CLOSED)
                if self._idle:
                    return self._idle.pop()
                if not running:
                    turn: SimpleQueue[_Request | None] = SimpleQueue()
                    self._waiting.append(turn)
                    break
            self._collect(running, results)
        request = turn.get()
        if request is None:
            raise ValueError(_CLOSED)
        return request

    def _collect(self, running: deque[_Request], results: Outputs) -> None:
        running[0].collect(results)
        self._give_back(running.popleft())

    def _give_back(self, request: _Request) -> None:
        """Hand the request to whoever has waited longest: a busy call would win a race for it every time."""
        request.release()
        with self._lock:
            if self._closed:
                return
            if self._waiting:
                self._waiting.popleft().put(request)
            else:
                self._idle.append(request)

    def close(self) -> None:
        """Free the model; a call still in flight ends with `ValueError`."""
        with self._lock:
            self._closed = True
            self._idle.clear()
            while self._waiting:
                self._waiting.popleft().put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Request:
    """An infer request with a padded input of its own for the last piece of a call."""

    def __init__(self, request: Any, batch: int) -> None:
        self._request = request
        self._padded = np.zeros((batch, SIDE, SIDE, 3), np.uint8)
        self._home = tensor_over(self._padded)
        self._start = 0
        self._count = 0
        self.release()

    def start(self, images: Images, start: int) -> None:
        """Begin to score images[start:start+batch] where they lie; fewer than batch are copied and padded."""
        piece = images[start : start + len(self._padded)]
        self._start, self._count = start, len(piece)
        if len(piece) == len(self._padded):
            self._request.set_tensor(INPUT, tensor_over(piece))
        else:
            self._padded[: len(piece)] = piece
        self._request.start_async()

    def collect(self, results: Outputs) -> None:
        """Wait, and copy the outputs into their rows of `results`."""
        self._request.wait()
        rows = slice(self._start, self._start + self._count)
        for name, array in results.items():
            array[rows] = self._request.get_tensor(name).data[: self._count]

    def release(self) -> None:
        """Let go of the caller's memory: a tensor holds its address but does not keep it mapped."""
        with suppress(RuntimeError):  # a failed inference was reported by collect()
            self._request.wait()
        self._request.set_tensor(INPUT, self._home)


def version() -> str:
    """OpenVINO's own. MachineError where it cannot be loaded."""
    return str(_openvino().get_version())


def compiled_for_throughput(
    graph: Path,
    model: Model,
    precision: Precision,
    *,
    batch: int = 1,
    threads: int | None = None,
    outputs: tuple[str, ...] | None = None,
) -> Any:
    """OpenVINO's compiled model, `batch` slices a request; arguments and errors are OpenVinoRunner's."""
    core = _openvino().Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise MachineError("this CPU has no bfloat16 instructions: use --precision fp32")
    try:
        network = core.read_model(graph)
        network.reshape({INPUT: [batch, SIDE, SIDE, 3]})
        if precision == "int8":
            unsign(network)
        _keep_outputs(network, graph, model, outputs or DEFAULT_OUTPUTS[model], batch)
        return core.compile_model(network, "CPU", _config(precision, threads))
    except RuntimeError as error:
        raise UsageError(
            f"OpenVINO cannot load {graph}: {first_line(error)}; try --backend onnxruntime or another bundle"
        ) from error


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MachineError(f"OpenVINO cannot be loaded ({error}): pip install openvino") from error
    return openvino


def _config(precision: Precision, threads: int | None) -> dict[str, str | int]:
    config: dict[str, str | int] = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": _ELEMENT_TYPES[precision],
    }
    return config if threads is None else {**config, "INFERENCE_NUM_THREADS": threads}


def tensor_over(images: Images) -> Any:
    """An OpenVINO tensor over the array's own memory; the array must outlive its use."""
    import openvino as ov

    # This constructor, unlike shared_memory=True, also takes arrays that may not be written to.
    return ov.Tensor(images, ov.Shape(list(images.shape)), ov.Type.u8)


def unsign(network: Any) -> None:
    """Round what a Relu gives to uint8 by half the step, in place of int8.

    An int8 graph is signed throughout, as TensorRT wants it. A number that is never negative leaves half of
    int8 unused: with uint8 its error is half as large, and the CPU's kernels, made for it, cost less.
    """
    from openvino import opset8

    for rounding in network.get_ordered_ops():
        if rounding.get_type_name() != "FakeQuantize":
            continue
        given, last = rounding.input_value(0), _dequantised(rounding)
        if last is None or not _is_never_negative(given.get_node()):
            continue
        step = rounding.input_value(2).get_node().data / (2 * 127)
        zero, top = np.zeros_like(step), np.full_like(step, 255)
        stored = opset8.convert(opset8.fake_quantize(given, zero, step * 255, zero, top, levels=256), "u8")
        restored = opset8.multiply(opset8.convert(stored, "f32"), step)
        for target in last.output(0).get_target_inputs():
            target.replace_source_output(restored.output(0))


def _dequantised(rounding: Any) -> Any | None:
    """The Multiply with the step at the end of a QuantizeLinear and its DequantizeLinear; None without."""
    node = rounding
    while node.get_type_name() in ("FakeQuantize", "Convert", "Subtract"):
        readers = [target.get_node() for target in node.output(0).get_target_inputs()]
        if len(readers) != 1:
            return None
        node = readers[0]
    return node if node.get_type_name() == "Multiply" else None


def _is_never_negative(node: Any) -> bool:
    while node.get_type_name() == "MaxPool":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Relu")


def _keep_outputs(network: Any, graph: Path, model: Model, names: tuple[str, ...], batch: int) -> None:
    """Drop the outputs nobody asked for, so that they are not computed, and check the others."""
    found = {output.any_name: output for output in network.outputs}
    for name in names:
        if name not in found:
            raise UsageError(f"{graph} has no output {name!r}: export the bundle again or choose another")
        spec = CONTRACT[model][name]
        want, shape = (spec.dtype, [batch, *spec.shape]), found[name].partial_shape
        have = (
            np.dtype(found[name].element_type.to_dtype()),
            list(shape.to_shape()) if shape.is_static else None,
        )
        if have != want:
            raise UsageError(
                f"{graph} gives {name!r} as {have[0]} {have[1]} where {want[0]} {want[1]} is due: "
                "export the bundle again or choose another"
            )
    for name, output in found.items():
        if name not in names:
            network.remove_result(output.get_node())
