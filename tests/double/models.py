"""`DeviceModel` and `DeviceRunner` over the double alone, for lanes that know no runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from engine.bundle import Bundle, Model
from engine.errors import MachineError, UsageError
from engine.runners.base import INPUT, OutputSpec, Precision
from tests.double.compute import Computer, bundle_graph, computer
from tests.double.double import Double
from tests.double.faults import BAD_HANDLE, INVALID, CudaFailure
from tests.double.hosts import Host, caller
from tests.double.memory import Block, Reach
from tests.double.transfers import device_reach

WORKSPACE = 1 << 20
ALIGNMENT = 256
"""Of every address that a runtime is given, in bytes: TensorRT's rule."""


def make_models(
    double: Double, bundle: Bundle, batch: int, *, probabilities: bool = False
) -> tuple[DoubleModel, DoubleModel]:
    """The classifier and the segmenter of a bundle for that batch size."""
    models: tuple[Model, Model] = ("classifier", "segmenter")
    first, second = (
        DoubleModel(double, computer(bundle_graph(bundle, model, probabilities)), model, batch)
        for model in models
    )
    return first, second


class DoubleModel:
    """See `engine.runners.device.DeviceModel`."""

    name = "double"
    version = "1.0"
    precision: Precision = "fp16"

    def __init__(self, double: Double, graph: Computer, model: Model, batch: int) -> None:
        self.model = model
        self.outputs = {tensor.name: OutputSpec(tensor.dtype, tensor.shape) for tensor in graph.outputs}
        self.identity: Mapping[str, str | int] = {"plan_sha256": "0" * 64}
        self._double = double
        self._graph = graph
        self._batch = batch
        self._open = 0

    def workspace(self, batch: int) -> int:
        self._check_batch(batch)
        return WORKSPACE

    def make(self, stream: int, batch: int, workspace: int) -> DoubleRunner:
        self._check_batch(batch)
        with _machine_errors("make"), self._double.call("make") as host:
            self._double.refuse_when_steady("make")
            if stream not in self._double.device.queues:
                self._double.add("refusal", f"make on {stream:#x}, which is no stream ({caller()})")
                raise CudaFailure(BAD_HANDLE)
            scratch = scratch_reach(self._double, "make", workspace, WORKSPACE)
            self._open += 1
            self._double.counts["runners"] += 1
            return DoubleRunner(self, host, stream, scratch)

    def _check_batch(self, batch: int) -> None:
        if batch != self._batch:
            raise UsageError(f"the {self.model} is for batches of {self._batch} slices, not of {batch}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._double.add("refusal", f"the {self.model} is left with {self._open} runners open")


class DoubleRunner:
    """See `engine.runners.device.DeviceRunner`."""

    def __init__(self, of: DoubleModel, host: Host, stream: int, scratch: Reach) -> None:
        self.batch = of._batch
        self._of = of
        self._stream = stream
        self._scratch = scratch
        self._state = Block("state", f"the {of.model}'s runner made by {host.name}", 0, 1)
        self._closed = False

    def enqueue(self, pointers: Mapping[str, int]) -> None:
        double = self._of._double
        if self._closed:
            raise ValueError("enqueue() was called on a closed runner")
        with _machine_errors("enqueue"), double.call("enqueue") as host:
            enqueue_execution(
                double,
                host,
                self._stream,
                "enqueue",
                self._of._graph,
                self.batch,
                pointers,
                (self._scratch, Reach(self._state, 0, 1, True)),
            )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with self._of._double.quietly() as host:
            self._of._double.release(self._state, host.now())
            self._of._double.counts["runners"] -= 1
            self._of._open -= 1


def enqueue_execution(
    double: Double,
    host: Host,
    stream: int,
    name: str,
    graph: Computer,
    batch: int,
    pointers: Mapping[str, int],
    others: tuple[Reach, ...],
) -> None:
    """Put one execution on a stream. It reads the input, writes every output and all of `others`."""
    reaches = {}
    for tensor in (graph.input, *graph.outputs):
        size = batch * tensor.bytes
        address = pointers[tensor.name]
        if type(address) is not int:
            raise TypeError(f"the address of {tensor.name} is a {type(address).__name__}, not an int")
        if address % ALIGNMENT:
            double.add(
                "refusal", f"{name} ({caller()}): {tensor.name} is not aligned to {ALIGNMENT}: {address:#x}"
            )
        reaches[tensor.name] = device_reach(double, name, address, size, tensor.name != INPUT)
    for reach in others:
        if reach.block.freed:
            double.add("address", f"{name} ({caller()}) on {reach.block.name}, {reach.block.freed}")
            raise CudaFailure(INVALID)
    queue = double.device.queues.get(stream)
    if queue is None:
        double.add("refusal", f"{name} on {stream:#x}, which is no stream ({caller()})")
        raise CudaFailure(BAD_HANDLE)

    def work() -> None:
        images = reaches[INPUT].bytes.reshape(batch, *graph.input.shape)
        for output, values in graph.run(images).items():
            reaches[output].bytes.view(values.dtype).reshape(values.shape)[...] = values

    double.device.enqueue(host, queue, name, (*reaches.values(), *others), work)


def scratch_reach(double: Double, name: str, address: int, size: int) -> Reach:
    """A workspace, which every execution writes."""
    if address % ALIGNMENT:
        double.add("refusal", f"{name} ({caller()}): the workspace is not aligned to {ALIGNMENT} bytes")
    return device_reach(double, name, address, size, True)


@contextmanager
def _machine_errors(name: str) -> Iterator[None]:
    try:
        yield
    except CudaFailure as failure:
        raise MachineError(f"the double's {name} failed: {failure.code.text}") from failure
