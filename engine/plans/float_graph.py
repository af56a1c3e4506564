"""A bundle's float graph, read and simplified: what its FP16 graph is made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.bundle import Model
from engine.errors import UsageError
from engine.runners.base import CONTRACT, INPUT, SIDE, OutputSpec, first_line

_FOLDED_OPS = frozenset({"Constant", "Cast", "Identity", "Transpose"})
_ONNX_DOMAINS = ("", "ai.onnx")

Constants = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class FloatGraph:
    """The nodes of a graph in order, the outputs that they are kept for, and the constants that they use.

    `types` has element type and shape (ONNX's `TypeProto.Tensor`, empty where unknown) of what is computed.
    """

    model: Model
    nodes: Sequence[Any]
    outputs: Sequence[str]
    constants: Mapping[str, npt.NDArray[Any]]
    types: defaultdict[str, Any]


def refusal(model: Model, why: str) -> UsageError:
    """The error for a graph that is not what a bundle holds, or that float16 cannot take."""
    return UsageError(f"no FP16 plan can be made of the {model}: {why}; choose another bundle with --bundle")


def called(node: Any) -> str:
    """A node as messages name it."""
    return f"node {node.name} ({node.op_type})"


def parse(graph: bytes, model: Model) -> Any:
    """The `ModelProto`, checked, with a name for every node; `UsageError` when it is no graph of a bundle."""
    import onnx

    try:
        whole = onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf's DecodeError, which onnx does not pass on by a name of its own
        raise refusal(model, f"its graph is damaged ({first_line(error)})") from error
    check(whole, model)
    _check_interface(whole.graph, model)
    for index, node in enumerate(whole.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
        if node.domain not in _ONNX_DOMAINS:
            raise refusal(model, f"{called(node)} is an operator of {node.domain}, not of ONNX")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise refusal(model, f"{called(node)} holds a graph of its own")
    for opset in [opset for opset in whole.opset_import if opset.domain not in _ONNX_DOMAINS]:
        whole.opset_import.remove(opset)
    whole.graph.ClearField("value_info")
    return whole


def check(whole: Any, model: Model) -> None:
    """Raise `UsageError` where a `ModelProto` breaks ONNX's rules, those of types and shapes among them."""
    import onnx

    try:
        onnx.checker.check_model(whole, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise refusal(model, f"its graph is not valid ({first_line(error)})") from error


def _check_interface(graph: Any, model: Model) -> None:
    from onnx import helper

    due = {INPUT: OutputSpec(np.dtype(np.uint8), (SIDE, SIDE, 3)), **CONTRACT[model]}
    wanted = {name: f"{spec.dtype} {['N', *spec.shape]}" for name, spec in due.items()}
    found = {}
    for value in [*graph.input, *graph.output]:
        tensor = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        found[value.name] = f"{dtype} {[dim.dim_param or dim.dim_value for dim in tensor.shape.dim]}"
    for name in sorted(wanted.keys() | found.keys()):
        has, due_here = found.get(name, "missing"), wanted.get(name, "nothing of that name")
        if has != due_here:
            raise refusal(model, f"its {name} is {has} where {due_here} is due")


def comparison(whole: Any, model: Model) -> str:
    """The bool tensor that `mask` is a Cast of; `UsageError` naming the node where it is none."""
    from onnx import TensorProto

    last = next(node for node in whole.graph.node if "mask" in node.output)
    if last.op_type != "Cast" or _types(whole)[last.input[0]].elem_type != TensorProto.BOOL:
        raise refusal(model, f"mask comes from {called(last)}, where a Cast of a comparison is due")
    name: str = last.input[0]
    return name


def _types(whole: Any) -> defaultdict[str, Any]:
    import onnx

    graph = onnx.shape_inference.infer_shapes(whole, data_prop=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return defaultdict(onnx.TypeProto.Tensor, {value.name: value.type.tensor_type for value in values})


def simplified(whole: Any, outputs: Sequence[str], model: Model) -> FloatGraph:
    """What `outputs` need of the graph, with no node left that computes a constant or a Reshape's shape.

    Among these nodes are the Casts behind the kernels, which a bundle stores as float16.
    """
    from onnx import numpy_helper

    types = _types(whole)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    nodes = []
    for node in whole.graph.node:
        if node.op_type in _FOLDED_OPS and all(name in constants for name in node.input):
            constants[node.output[0]] = _evaluated(node, constants)
            continue
        if node.op_type == "Reshape":
            _fix_shape(node, constants, types)
        nodes.append(node)
    return FloatGraph(model, needed(nodes, outputs), outputs, constants, types)


def _evaluated(node: Any, constants: Constants) -> npt.NDArray[Any]:
    from onnx.reference import ReferenceEvaluator

    result = ReferenceEvaluator(node).run(None, {name: constants[name] for name in node.input})[0]
    return np.asarray(result)


def _fix_shape(reshape: Any, constants: Constants, types: defaultdict[str, Any]) -> None:
    """Write the shape down where N alone is open: computing it would take Casts and a dozen nodes."""
    sizes = [dim.dim_value for dim in types[reshape.output[0]].shape.dim]
    if reshape.input[1] not in constants and sizes and all(sizes[1:]):
        reshape.input[1] = f"{reshape.output[0]}_shape"
        constants[reshape.input[1]] = np.array([sizes[0] or -1, *sizes[1:]], np.int64)


def needed(nodes: Sequence[Any], names: Iterable[str]) -> list[Any]:
    """The nodes that `names` are computed from, in order."""
    wanted, found = set(names), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def behind(nodes: Iterable[Any], starts: Iterable[Any]) -> set[str]:
    """Every tensor that the nodes `starts` give, and what is computed from them."""
    reached = given(starts)
    for node in nodes:
        if not reached.isdisjoint(node.input):
            reached.update(node.output)
    return reached


def given(nodes: Iterable[Any]) -> set[str]:
    """The tensors that the nodes compute."""
    return {name for node in nodes for name in node.output if name}


def taken(nodes: Iterable[Any]) -> set[str]:
    """The tensors and constants that the nodes read."""
    return {name for node in nodes for name in node.input if name}
