"""The same network for less work: pixels that a later stride throws away are not computed.

ResNet50 puts the stride of a stage into its first 1x1 convolutions, so that three of four pixels of the block
before are computed for nothing. The stride is moved up through that block, as far as all that read a tensor
read its even pixels only. Every pixel that is left is computed as before, to the bit.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper, numpy_helper

_TWO = [2, 2]


def merge_pads(model: onnx.ModelProto) -> None:
    """Let each MaxPool pad by itself where a Pad with zeros stands between it and a Relu."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for pool in model.graph.node:
        pad = makers.get(pool.input[0])
        if pool.op_type != "MaxPool" or pad is None or pad.op_type != "Pad":
            continue
        before = makers.get(pad.input[0])
        if before is None or before.op_type != "Relu" or not _is_zero_padding(pad, constants):
            continue
        edges = numpy_helper.to_array(constants[pad.input[1]]).tolist()
        if any(edges[:2]) or any(edges[4:6]) or any(attributes(pool).get("pads", [])):
            continue
        _set(pool, "pads", [*edges[2:4], *edges[6:8]])
        _remove(pool, "auto_pad")
        pool.input[0] = pad.input[0]
    _drop_unread(model)


def hoist_strides(model: onnx.ModelProto) -> int:
    """Move strides of 2 up as far as they go; returns by how many nodes they moved in all."""
    moved = 0
    while _hoist_one(model.graph):
        moved += 1
    return moved


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _hoist_one(graph: onnx.GraphProto) -> bool:
    kernels = {tensor.name: tensor.dims for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    for index, node in enumerate(graph.node):
        if node.output[0] in outputs or not _takes_stride(node, kernels):
            continue
        readers = [each for each in graph.node if node.output[0] in each.input]
        if readers and all(_reads_even(each, node.output[0], kernels) for each in readers):
            _hoist(graph, index, readers)
            return True
    return False


def _takes_stride(node: onnx.NodeProto, kernels: dict[str, Any]) -> bool:
    """Whether the node's even pixels can be had from fewer pixels, or from even ones."""
    if node.op_type == "Conv":
        found = attributes(node)
        return set(found.get("strides", [1])) == {1} and found.get("auto_pad", b"NOTSET") == b"NOTSET"
    return node.op_type == "Relu" or (
        node.op_type == "Add" and not any(name in kernels for name in node.input)
    )


def _reads_even(node: onnx.NodeProto, name: str, kernels: dict[str, Any]) -> bool:
    found = attributes(node)
    if found.get("strides") != _TWO or any(found.get("pads", [])):
        return False
    if node.op_type == "Conv":
        return node.input[0] == name and list(kernels.get(node.input[1], []))[2:] == [1, 1]
    return bool(node.op_type == "MaxPool" and found["kernel_shape"] == [1, 1])


def _hoist(graph: onnx.GraphProto, index: int, readers: list[onnx.NodeProto]) -> None:
    node = graph.node[index]
    for reader in readers:
        if reader.op_type == "Conv":
            _set(reader, "strides", [1, 1])
        else:  # it did nothing but take the even pixels
            for each in graph.node:
                each.input[:] = [node.output[0] if name == reader.output[0] else name for name in each.input]
            graph.node.remove(reader)
    if node.op_type == "Conv":
        _set(node, "strides", _TWO)
        return
    for slot, name in enumerate(node.input):
        even = f"{name}/even"
        if not any(even in each.output for each in graph.node):
            pool = helper.make_node("MaxPool", [name], [even], name=even, kernel_shape=[1, 1], strides=_TWO)
            graph.node.insert(index, pool)
            index += 1
        node.input[slot] = even


def _is_zero_padding(pad: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if attributes(pad).get("mode", b"constant") != b"constant" or pad.input[1] not in constants:
        return False
    if len(pad.input) < 3 or not pad.input[2]:
        return True
    value = constants.get(pad.input[2])
    return value is not None and not numpy_helper.to_array(value).any()


def _drop_unread(model: onnx.ModelProto) -> None:
    """Nodes and constants that nothing reads any more."""
    graph = model.graph
    wanted = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
    kept = [node for node in graph.node if not wanted.isdisjoint(node.output)]
    constants = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants)


def _set(node: onnx.NodeProto, name: str, value: list[int]) -> None:
    _remove(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def _remove(node: onnx.NodeProto, name: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
