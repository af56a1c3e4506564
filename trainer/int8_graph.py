"""A float graph as one whose convolutions compute in int8: QuantizeLinear and DequantizeLinear put in.

Signed and symmetric throughout, zero point 0, one step a tensor and one a kernel's output channel, biases in
float: what TensorRT and OpenVINO both take. Steps are float16 numbers, so that a plan in FP16 has the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from trainer.strides import attributes, hoist_strides, merge_pads

OPSET = 19
"""The first in which a step may be float16, as plans need."""
IR_VERSION = 9
"""The one that belongs to it."""
TOP = 127
"""The largest of the whole numbers that are used, -127 to 127."""

LEAST_STEP = 2.0**-20
"""Float16 numbers get too coarse below."""

_ZERO = "int8_zero"
_STORED = 256
"""Values from which a float kernel is stored as float16."""


@dataclass(frozen=True, slots=True)
class Reader:
    """The input `slot` of the node called `node`."""

    node: str
    slot: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """A convolution's kernel as `values` int8 [O,I,h,w] times `steps` float16 [O]."""

    values: npt.NDArray[np.int8]
    steps: npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Sites:
    """What is to be in int8: convolutions by node name, and tensors with those that read them so."""

    convolutions: tuple[str, ...]
    tensors: Mapping[str, tuple[Reader, ...]]


def prepared(graph: bytes) -> onnx.ModelProto:
    """A bundle's float graph, ready for int8: the same numbers, to the bit.

    Kernels become float32 constants, strides and paddings move to where int8 kernels take them (behind a
    stride that OpenVINO moves by itself it computes the convolution in float), every node gets a name.
    """
    model = onnx.load_model_from_string(graph)
    _fold_casts(model.graph)
    merge_pads(model)
    hoist_strides(model)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    for opset in model.opset_import:
        opset.version = OPSET if opset.domain in ("", "ai.onnx") else opset.version
    model.ir_version = IR_VERSION
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def kernels(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    """The kernel of each convolution that could be in int8, by node name, in the order of the graph."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.name: numpy_helper.to_array(constants[node.input[1]])
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.input[1] in constants
        and attributes(node).get("group", 1) == 1
        and set(attributes(node).get("dilations", [1])) == {1}
    }


def find_sites(model: onnx.ModelProto, floats: Collection[str] = ()) -> Sites:
    """All convolutions but those named in `floats`, what they read, and the shortcut of each sum behind one.

    The other part of such a sum is a convolution's own output: it is added before it is rounded. Whatever
    pooling and nearest upsampling do to a tensor they may do to its int8 as well, so it is rounded before.
    """
    names = tuple(name for name in kernels(model) if name not in floats)
    slots = _slots(model, names)
    tensors: dict[str, dict[Reader, None]] = {}
    for slot in slots:
        reader = _before_pools(model, slots, slot)
        tensors.setdefault(_read_by(model, reader), {})[reader] = None
    return Sites(names, {tensor: tuple(readers) for tensor, readers in tensors.items()})


def candidates(model: onnx.ModelProto) -> set[str]:
    """Every tensor that is rounded in one of the graphs, whichever convolutions stay in float."""
    slots = _slots(model, tuple(kernels(model)))
    return {_read_by(model, slot) for slot in slots} | {
        _read_by(model, _before_pools(model, slots, slot)) for slot in slots
    }


def quantised(
    model: onnx.ModelProto,
    sites: Sites,
    steps: Mapping[str, np.float16],
    made: Mapping[str, Kernel],
) -> onnx.ModelProto:
    """The graph of a `prepared` one: `steps` by tensor, `made` by convolution; both of all the sites."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    graph = whole.graph
    nodes = {node.name: node for node in graph.node}
    constants = [numpy_helper.from_array(np.int8(0), _ZERO)]
    before: list[onnx.NodeProto] = []
    for name in sites.convolutions:
        stored = nodes[name].input[1]
        nodes[name].input[1] = f"{stored}/{name}"
        constants += [
            numpy_helper.from_array(made[name].values, f"{stored}/{name}/int8"),
            numpy_helper.from_array(made[name].steps.astype(np.float32), f"{stored}/{name}/steps"),
        ]
        before.append(_dequantise(f"{stored}/{name}", f"{stored}/{name}/steps", axis=0))
    behind: dict[str, list[onnx.NodeProto]] = {}
    for tensor, readers in sites.tensors.items():
        constants.append(numpy_helper.from_array(np.float32(steps[tensor]), f"{tensor}/rounded/steps"))
        behind[tensor] = _rounding(tensor)
        for reader in readers:
            nodes[reader.node].input[reader.slot] = f"{tensor}/rounded"
    ordered = [*before, *_with_following(graph, behind)]
    constants += _read_constants(graph, ordered)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(ordered)
    graph.initializer.extend(constants)
    _store_as_float16(graph)
    onnx.checker.check_model(whole, full_check=True)
    return whole


def upward(steps: npt.ArrayLike) -> npt.NDArray[np.float16]:
    """The next float16 numbers that are no smaller, so that the largest value is still within TOP steps."""
    exact = np.asarray(steps, np.float64)
    half = exact.astype(np.float16)
    up = np.nextafter(half, np.float16(np.inf))
    return np.maximum(np.where(half < exact, up, half), LEAST_STEP).astype(np.float16)


def _fold_casts(graph: onnx.GraphProto) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    folded = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in constants]
    for node in folded:
        kind = helper.tensor_dtype_to_np_dtype(attributes(node)["to"])
        tensor = constants[node.input[0]]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), node.output[0]))
        graph.node.remove(node)


def _shortcuts(model: onnx.ModelProto, names: Collection[str]) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Sums of a convolution in `names` that nothing else reads, and the slot of the other, shorter way."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    depths = _depths(model)
    for node in model.graph.node:
        if node.op_type != "Add" or not constants.isdisjoint(node.input) or node.input[0] == node.input[1]:
            continue
        fused = [
            slot
            for slot, name in enumerate(node.input)
            if name in makers
            and makers[name].name in names
            and sum(name in each.input for each in model.graph.node) == 1
        ]
        if fused:
            yield node, 1 - max(fused, key=lambda slot: depths[node.input[slot]])


def _depths(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes the longest way from the input to each tensor has."""
    depths: dict[str, int] = {}
    for node in model.graph.node:
        depth = 1 + max((depths.get(name, 0) for name in node.input), default=0)
        depths.update(dict.fromkeys(node.output, depth))
    return depths


def _slots(model: onnx.ModelProto, names: Collection[str]) -> dict[Reader, None]:
    """What is to read int8 where the convolutions called `names` do, in order."""
    inputs = [Reader(node.name, 0) for node in model.graph.node if node.name in names]
    sums = [Reader(node.name, slot) for node, slot in _shortcuts(model, names)]
    return dict.fromkeys([*inputs, *sums])


def _before_pools(model: onnx.ModelProto, slots: Collection[Reader], reader: Reader) -> Reader:
    """The pooling before `reader` whose result nothing reads that stays in float; else `reader` itself."""
    tensor = _read_by(model, reader)
    pool = next((node for node in model.graph.node if tensor in node.output), None)
    if pool is None or not _commutes(pool):
        return reader
    others = [
        Reader(node.name, slot)
        for node in model.graph.node
        for slot, name in enumerate(node.input)
        if name == tensor
    ]
    return Reader(pool.name, 0) if all(other in slots for other in others) else reader


def _commutes(node: onnx.NodeProto) -> bool:
    """Whether the node only picks values, so that it may do so before or after they are rounded."""
    return node.op_type == "MaxPool" or (
        node.op_type == "Resize" and attributes(node).get("mode") == b"nearest"
    )


def _read_by(model: onnx.ModelProto, reader: Reader) -> str:
    node = next(node for node in model.graph.node if node.name == reader.node)
    tensor: str = node.input[reader.slot]
    return tensor


def _rounding(tensor: str) -> list[onnx.NodeProto]:
    made, steps = f"{tensor}/rounded", f"{tensor}/rounded/steps"
    quantise = helper.make_node(
        "QuantizeLinear", [tensor, steps, _ZERO], [f"{made}/int8"], name=f"{made}/quantise"
    )
    return [quantise, _dequantise(made, steps, axis=None)]


def _dequantise(made: str, steps: str, axis: int | None) -> onnx.NodeProto:
    along = {} if axis is None else {"axis": axis}
    return helper.make_node(
        "DequantizeLinear", [f"{made}/int8", steps], [made], name=f"{made}/dequantise", **along
    )


def _with_following(
    graph: onnx.GraphProto, behind: Mapping[str, list[onnx.NodeProto]]
) -> Iterator[onnx.NodeProto]:
    """Every node, and right after the one that makes a tensor what is put behind it."""
    for node in graph.node:
        yield node
        for name in node.output:
            yield from behind.get(name, ())


def _read_constants(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> list[onnx.TensorProto]:
    read = {name for node in nodes for name in node.input}
    return [tensor for tensor in graph.initializer if tensor.name in read]


def _store_as_float16(graph: onnx.GraphProto) -> None:
    """Large kernels that stay in float, as a bundle's float graph stores them: they are float16 numbers."""
    for tensor in graph.initializer:
        if (
            tensor.data_type != onnx.TensorProto.FLOAT
            or len(tensor.dims) < 2
            or np.prod(tensor.dims) < _STORED
        ):
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        if np.array_equal(half.astype(np.float32), values):
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}/float16"))
            kind = onnx.TensorProto.FLOAT
            graph.node.insert(
                0, helper.make_node("Cast", [f"{name}/float16"], [name], name=f"{name}/cast", to=kind)
            )
