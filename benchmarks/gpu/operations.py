"""What a graph has to compute and to move, counted from its ONNX: the time that no chip can go below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.errors import UsageError

_PRODUCTS: Final = ("Conv", "ConvTranspose", "MatMul", "Gemm")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one slice: multiply-adds, bytes in and out of the graph, bytes that its products read and write.

    `activations` are the tensors before and behind each convolution and matrix product, in the graph's own
    types: what is moved where nothing stays in a cache. `weights` are bytes of the whole batch.
    """

    multiply_adds: int
    input: int
    output: int
    activations: int
    weights: int

    @property
    def operations(self) -> int:
        """A multiplication and an addition each."""
        return 2 * self.multiply_adds

    def bytes_moved(self, batch: int) -> float:
        """Bytes a slice between chip and memory where no tensor stays in a cache."""
        return self.activations + self.weights / batch


def count(graph: bytes) -> Cost:
    """Count a graph whose inputs and outputs have N slices. UsageError where a shape cannot be inferred."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(graph)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in inferred.initializer}
    tensors = {name: (array.shape, array.dtype.itemsize) for name, array in constants.items()}
    tensors |= {
        value.name: _described(value) for value in (*inferred.input, *inferred.output, *inferred.value_info)
    }
    shapes = {name: shape for name, (shape, _) in tensors.items()}
    sizes = {name: math.prod(shape) * item for name, (shape, item) in tensors.items()}
    products = [node for node in inferred.node if node.op_type in _PRODUCTS]
    moved = [name for node in products for name in (node.input[0], *node.input[1:], node.output[0])]
    return Cost(
        multiply_adds=sum(_multiply_adds(node, shapes) for node in products),
        input=sum(sizes[value.name] for value in inferred.input),
        output=sum(sizes[value.name] for value in inferred.output),
        activations=sum(sizes[name] for name in moved if name and name not in constants),
        weights=sum(array.nbytes for array in constants.values()),
    )


def _described(value: Any) -> tuple[Shape, int]:
    from onnx import helper

    kind = value.type.tensor_type
    shape = tuple(each.dim_value for each in kind.shape.dim)
    return shape, helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize


def _multiply_adds(node: Any, shapes: Mapping[str, Shape]) -> int:
    try:
        first, second, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    except KeyError as error:
        raise UsageError(f"the shape of {error} cannot be inferred: its operations are not counted") from None
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(second[1:])  # [filters, channels / groups, height, width]
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if node.op_type == "Gemm":
        turned = any(each.name == "transA" and each.i for each in node.attribute)
        return math.prod(out) * first[0 if turned else 1]
    return math.prod(out) * first[-1]
