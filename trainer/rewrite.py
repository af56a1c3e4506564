"""The same graph for less work: 1x1 convolutions on the small side of an upsampling.

A 1x1 convolution mixes channels and nearest upsampling repeats pixels, so they may change places:
`conv(concat(up(x), skip)) = up(conv_low(x)) + conv_skip(skip)`, where both kernels are columns of the one
there was. The low part costs a quarter, the concatenation is never written, and runtimes fuse the sum and the
activation behind it into the skip's convolution. Only the order of a sum changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

_Weights = dict[str, onnx.TensorProto]


@dataclass(frozen=True, slots=True)
class _Joint:
    """A `Concat` of an upsampling and a skip, in either order, and which channels are whose."""

    upsampling: onnx.NodeProto
    low: slice
    skip_name: str
    skip: slice


def lift_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph whose 1x1 convolutions of `Concat(Resize(x), skip)` are computed before the `Resize`.

    Kernels keep their numbers and the bias goes to the skip's part. Two convolutions of one concatenation
    stay two: merged, they would need a `Split` behind them, which costs CPUs more than reading the input
    twice. A graph without the pattern comes back equal, and so does one that was rewritten before.
    """
    joints = _joints(model)
    lifted = onnx.ModelProto()
    lifted.CopyFrom(model)
    if not joints:
        return lifted
    weights = _weights(model)
    nodes: list[onnx.NodeProto] = []
    kernels: list[onnx.TensorProto] = []
    for node in model.graph.node:
        if node.input and node.input[0] in joints:
            parts, columns = _lift(node, joints[node.input[0]], weights)
            nodes.extend(parts)
            kernels.extend(columns)
        elif node.output[0] not in joints:
            nodes.append(node)
    _replace(lifted.graph, nodes, [*model.graph.initializer, *kernels])
    return lifted


def _joints(model: onnx.ModelProto) -> dict[str, _Joint]:
    """By the name of what the `Concat` gives, where nothing but 1x1 convolutions reads it."""
    graph, weights = model.graph, _weights(model)
    makers = {name: node for node in graph.node for name in node.output}
    channels = _channels(model)
    outputs = {value.name for value in graph.output}
    joints = {}
    for concat in graph.node:
        if concat.op_type != "Concat" or len(concat.input) != 2 or _attributes(concat)["axis"] != 1:
            continue
        name = concat.output[0]
        readers = [node for node in graph.node if name in node.input]
        if name in outputs or not all(_is_pointwise(node, weights) for node in readers):
            continue
        upsampled = [_is_upsampling(makers.get(part), weights) for part in concat.input]
        edge = channels.get(concat.input[0], 0)
        if upsampled.count(True) != 1 or not edge:
            continue
        columns = (slice(None, edge), slice(edge, None))
        low, skip = (0, 1) if upsampled[0] else (1, 0)
        joints[name] = _Joint(makers[concat.input[low]], columns[low], concat.input[skip], columns[skip])
    return joints


def _lift(
    conv: onnx.NodeProto, joint: _Joint, weights: _Weights
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes that take the convolution's place, and their kernels."""
    name = conv.output[0]
    low, up, skip = f"{name}/low", f"{name}/up", f"{name}/skip"
    kernel = numpy_helper.to_array(weights[conv.input[1]])
    kernels = [
        numpy_helper.from_array(np.ascontiguousarray(kernel[:, columns]), f"{part}/kernel")
        for part, columns in ((low, joint.low), (skip, joint.skip))
    ]
    before = joint.upsampling
    nodes = [
        _again(conv, [before.input[0], f"{low}/kernel"], low),
        _again(before, [low, *before.input[1:]], up),
        _again(conv, [joint.skip_name, f"{skip}/kernel", *conv.input[2:]], skip),
        helper.make_node("Add", [skip, up], [name], name=f"{name}/sum"),
    ]
    return nodes, kernels


def _again(node: onnx.NodeProto, inputs: list[str], output: str) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.append(output)
    copy.name = output
    return copy


def _replace(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]
) -> None:
    """Put these in, less the upsamplings and kernels that nothing reads any more, and forget old shapes."""
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in nodes if node.op_type != "Resize" or node.output[0] in read]
    read = {name for node in kept for name in node.input}
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensor for tensor in initializers if tensor.name in read)


def _is_pointwise(node: onnx.NodeProto, weights: _Weights) -> bool:
    if node.op_type != "Conv" or node.input[1] not in weights:
        return False
    found = _attributes(node)
    return (
        set(weights[node.input[1]].dims[2:]) == {1}
        and found.get("group", 1) == 1
        and set(found.get("strides", [1])) == {1}
        and set(found.get("pads", [0])) == {0}
    )


def _is_upsampling(node: onnx.NodeProto | None, weights: _Weights) -> bool:
    """Whether each pixel is repeated a whole number of times and nothing else happens."""
    if node is None or node.op_type != "Resize" or len(node.input) != 3 or node.input[2] not in weights:
        return False
    wanted = {"mode": b"nearest", "coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}
    factors = numpy_helper.to_array(weights[node.input[2]])
    return (
        _attributes(node) == wanted
        and bool((factors[:2] == 1).all())
        and bool((factors[2:] >= 1).all() and (factors == np.round(factors)).all())
    )


def _channels(model: onnx.ModelProto) -> dict[str, int]:
    """How many channels a tensor has; 0 where that is not known."""
    inferred = shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: value.type.tensor_type.shape.dim for value in [*inferred.input, *inferred.value_info]
    }
    return {name: shape[1].dim_value for name, shape in shapes.items() if len(shape) > 1}


def _weights(model: onnx.ModelProto) -> _Weights:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
