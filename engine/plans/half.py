"""The FP16 graph of a model, made from the bundle's float graph for TensorRT's strongly typed networks.

A graph has three parts, told apart by its convolutions and matrix products: what stands before the first of
them (the normalisation, float32), what follows (the network, float16), and what follows the Sigmoid or
Softmax behind the last of them (the head, float32). ONNX Runtime's converter is given the network alone: told
to leave the other parts of one graph as they are, it would send every tensor there through float16.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.bundle import Model
from engine.errors import MachineError
from engine.plans.float_graph import (
    Constants,
    FloatGraph,
    behind,
    called,
    check,
    comparison,
    given,
    needed,
    parse,
    refusal,
    simplified,
    taken,
)
from engine.runners.base import CONTRACT, SIDE, OutputSpec

PLAN_CONTRACT: Mapping[Model, Mapping[str, OutputSpec]] = {
    "classifier": {"tumor_probability": CONTRACT["classifier"]["tumor_probability"]},
    "segmenter": {
        "mask_bits": OutputSpec(np.dtype(np.uint8), (SIDE, SIDE // 8)),
        "mask_probability": CONTRACT["segmenter"]["mask_probability"],
    },
}
"""What a plan gives. `mask_bits` is np.packbits(mask, axis=-1): the leftmost pixel is the highest bit."""

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PROBABILITIES = frozenset({"Sigmoid", "Softmax"})
_ROUNDINGS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_HALF_OPS = (
    _PRODUCTS
    | _PROBABILITIES
    | _ROUNDINGS
    | {"Relu", "LeakyRelu", "PRelu", "Elu", "Tanh", "HardSigmoid", "HardSwish", "Clip"}
    | {"Add", "Sub", "Mul", "Div"}
    | {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMean", "Resize", "Pad"}
    | {"Concat", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose"}
    | {"Shape", "Identity", "DepthToSpace"}
)
"""What a network may consist of, besides BatchNormalization, which becomes two of these.

Others (an exponential, a sort) need a decision first.
"""


def half_graph(graph: bytes, model: Model, *, probabilities: bool = False) -> bytes:
    """Make the FP16 ONNX of a bundle's float graph; the same input gives the same bytes.

    `images` uint8 [N,256,256,3] and the outputs of `PLAN_CONTRACT` (`mask_probability` only if
    `probabilities`) keep their types and their dynamic N. Kernels and vectors of the network become float16
    numbers, a BatchNormalization the scale and shift it stands for; the only Casts are those of the input, of
    each tensor that enters or leaves the network, and of the outputs. A graph without a convolution or matrix
    product has no network and stays in float32.

    Raises:
        UsageError: not a bundle's graph of that model, or one with a node or number that float16 cannot take.
        MachineError: onnx or ONNX Runtime is not installed.
    """
    try:
        from onnxruntime.transformers.onnx_model import OnnxModel
    except ImportError as error:
        raise MachineError(f"plans cannot be made ({error}): pip install 'tumorscan[gpu]'") from error
    whole = parse(graph, model)
    outputs = [name for name in PLAN_CONTRACT[model] if probabilities or name != "mask_probability"]
    sources = [comparison(whole, model) if name == "mask_bits" else name for name in outputs]
    source = simplified(whole, sources, model)
    nodes, constants = _with_half_network(source, _network(source))
    if "mask_bits" in outputs:
        nodes += _packing(sources[0], constants)
    _assemble(whole.graph, nodes, constants, {name: PLAN_CONTRACT[model][name] for name in outputs})
    OnnxModel.graph_topological_sort(whole.graph)
    check(whole, model)
    made: bytes = whole.SerializeToString(deterministic=True)
    return made


def _network(source: FloatGraph) -> list[Any]:
    """The nodes that are to compute in float16; none where there is no convolution or matrix product."""
    products = [node for node in source.nodes if node.op_type in _PRODUCTS]
    # An int8 graph's kernels, and what its first convolution reads, are rounded before any product.
    after = behind(source.nodes, [node for node in source.nodes if node.op_type in _PRODUCTS | _ROUNDINGS])
    before = given(needed(source.nodes, taken(products)))
    ends = [node for node in source.nodes if node.op_type in _PROBABILITIES]
    head = behind(source.nodes, [node for node in ends if node.output[0] in after - before])
    for name in source.outputs:
        if name in after - head:
            why = f"no Sigmoid or Softmax stands between {called(products[-1])} and {name}"
            raise refusal(source.model, why)
    return [node for node in source.nodes if node.output[0] in after - head]


def _with_half_network(source: FloatGraph, network: Sequence[Any]) -> tuple[list[Any], Constants]:
    """All nodes, those of the network in float16 and Casts at its borders, and all constants.

    What stands on both sides of a border has a name of its own inside: X_half.
    """
    from onnx import TensorProto, helper

    constants = dict(source.constants)
    inner = given(network)
    outside = [node for node in source.nodes if node.output[0] not in inner]
    entering = _floats(source, taken(network) - inner - constants.keys())
    leaving = _floats(source, taken(outside) & inner)
    shared = sorted(taken(network) & taken(outside) & constants.keys())
    names = {name: f"{name}_half" for name in (*entering, *leaving, *shared)}
    constants.update({names[name]: constants[name] for name in shared})
    plain = [step for node in network for step in _without_batch_norm(node, source, constants)]
    half = _converted([_renamed(node, names) for node in plain], source, constants)
    casts = [(name, names[name], TensorProto.FLOAT16) for name in entering]
    casts += [(names[name], name, TensorProto.FLOAT) for name in leaving]
    borders = [
        helper.make_node("Cast", [old], [new], name=f"{new}_cast", to=kind) for old, new, kind in casts
    ]
    return [*outside, *borders, *half], constants


def _floats(source: FloatGraph, names: Iterable[str]) -> list[str]:
    """Those that cross a border as float32, sorted; whole numbers cross it as they are."""
    from onnx import TensorProto

    floats = []
    for name in sorted(names):
        kind = source.types[name].elem_type
        if kind == TensorProto.FLOAT:
            floats.append(name)
        elif kind not in (TensorProto.INT32, TensorProto.INT64):
            has = TensorProto.DataType.Name(kind)
            raise refusal(source.model, f"{name} is {has} where its network begins or ends, FLOAT is due")
    return floats


def _without_batch_norm(node: Any, source: FloatGraph, constants: Constants) -> list[Any]:
    """The node, or for a BatchNormalization y = x scale + shift, computed in float64 and rounded once.

    Its own vectors cannot become float16: the variances of ImageNet weights leave its range.
    """
    from onnx import helper

    if node.op_type != "BatchNormalization":
        return [node]
    rank = len(source.types[node.input[0]].shape.dim)
    if rank < 2 or not all(name in constants for name in node.input[1:]):
        raise refusal(source.model, f"{called(node)} has vectors or an input that only a run would know")
    gamma, beta, mean, variance = (constants[name].astype(np.float64) for name in node.input[1:])
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    scale = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    column = (-1, *[1] * (rank - 2))
    scaled = f"{node.output[0]}_scaled"
    steps = []
    for kind, value, x, y in (
        ("Mul", scale, node.input[0], scaled),
        ("Add", beta - mean * scale, scaled, node.output[0]),
    ):
        name = f"{node.name}_{kind}"
        constants[name] = _as_float16(value.reshape(column), node, source.model)
        steps.append(helper.make_node(kind, [x, name], [y], name=name))
    return steps


def _as_float16(values: npt.NDArray[Any], node: Any, model: Model) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise refusal(model, f"a constant of {called(node)} is not finite in float16")
    return half


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    copy = type(node)()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    return copy


def _converted(nodes: Sequence[Any], source: FloatGraph, constants: Constants) -> list[Any]:
    """The nodes as the converter leaves them; their constants become float16 in `constants`."""
    from onnx import helper, numpy_helper
    from onnxruntime.transformers.float16 import convert_float_to_float16

    for node in nodes:
        if node.op_type not in _HALF_OPS:
            raise refusal(source.model, f"{called(node)} is not known to compute well in float16")
        for name in node.input:
            if name in constants and constants[name].dtype.kind == "f":
                _as_float16(constants[name], node, source.model)  # the converter would cut off in silence
    used = [
        numpy_helper.from_array(constants[name], name) for name in sorted(taken(nodes) & constants.keys())
    ]
    network = helper.make_model(helper.make_graph(nodes, "network", [], [], used))
    graph = convert_float_to_float16(network, op_block_list=[], disable_shape_infer=True).graph
    constants.update({tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer})
    return list(graph.node)


def _packing(comparison: str, constants: Constants) -> list[Any]:
    """`mask_bits` from the bool tensor behind `mask`. Every sum is below 256, so float16 holds it exactly.

    TensorRT takes uint8 at inputs and outputs alone, and no Cast from bool to uint8 that something follows.
    """
    from onnx import TensorProto, helper

    constants["mask_powers"] = (2.0 ** np.arange(7, -1, -1)).astype(np.float16)
    constants["mask_eights_shape"] = np.array([0, SIDE, SIDE // 8, 8], np.int64)
    return [
        helper.make_node("Cast", [comparison], ["mask_half"], name="mask_half", to=TensorProto.FLOAT16),
        helper.make_node("Reshape", ["mask_half", "mask_eights_shape"], ["mask_eights"], name="mask_eights"),
        helper.make_node("MatMul", ["mask_eights", "mask_powers"], ["mask_sums"], name="mask_sums"),
        helper.make_node("Cast", ["mask_sums"], ["mask_bits"], name="mask_bits", to=TensorProto.UINT8),
    ]


def _assemble(
    graph: Any, nodes: Sequence[Any], constants: Constants, outputs: Mapping[str, OutputSpec]
) -> None:
    from onnx import helper, numpy_helper

    for field in ("node", "initializer", "output"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(constants[name], name) for name in sorted(taken(nodes) & constants.keys())
    )
    for name, spec in outputs.items():
        kind = helper.np_dtype_to_tensor_dtype(spec.dtype)
        graph.output.append(helper.make_tensor_value_info(name, kind, ["N", *spec.shape]))
