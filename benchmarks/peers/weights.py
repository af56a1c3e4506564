"""The bundle's weights by Keras layer, for peers that build the networks themselves.

The graphs have every batch normalisation behind a linear convolution folded into it; the kernels are taken
as they are, and who loads them has such normalisations do nothing. What stays (the segmenter's two stem
normalisations) is a scale and a shift. Of kernels that were lifted above an upsampling, both parts are
joined again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from engine.bundle import Bundle, Model
from engine.errors import UsageError

_SUFFIX: Final = re.compile(r"_\d+$")
"""What Keras adds to a layer's name when the model is called in another graph."""

Arrays = dict[str, npt.NDArray[Any]]


def write_weights(bundle: Bundle, folder: Path) -> dict[Model, Path]:
    """Write MODEL.npz of `LAYER/kernel` (HWIO, or in x out), `LAYER/bias`, `LAYER/gamma`, `LAYER/beta`."""
    paths: dict[Model, Path] = {}
    models: tuple[Model, ...] = ("classifier", "segmenter")
    for model in models:
        arrays = layer_arrays(onnx.load(bundle.graph(model)))
        if not arrays:
            raise UsageError(f"{bundle.graph(model).name} was not exported from Keras: it names no layers")
        paths[model] = folder / f"{model}.npz"
        np.savez(paths[model], **arrays)
    return paths


def layer_arrays(model: onnx.ModelProto) -> Arrays:
    """Every weight of the graph, by Keras layer and variable, float32."""
    graph = model.graph
    values: Arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:  # kernels are stored as float16 behind a Cast
        if node.op_type == "Cast" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
    readers = {name: node for node in graph.node for name in node.input}
    found: Arrays = {}
    for node in graph.node:
        if node.op_type == "Conv":
            _take_convolution(node, values, found)
        elif node.op_type == "MatMul" and node.input[1] in values:
            layer = _layer(node.input[1])
            bias = _constant(readers[node.output[0]], values)
            found |= {f"{layer}/kernel": values[node.input[1]], f"{layer}/bias": bias}
        elif node.op_type == "Mul" and "/batchnorm/" in node.output[0]:
            layer = _layer(node.output[0])
            shift = _constant(readers[node.output[0]], values)
            found |= {f"{layer}/gamma": _constant(node, values).ravel(), f"{layer}/beta": shift.ravel()}
    return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


def _take_convolution(node: onnx.NodeProto, values: Arrays, found: Arrays) -> None:
    layer, kernel = _layer(node.input[1]), values[node.input[1]].transpose(2, 3, 1, 0)
    name = f"{layer}/kernel"
    # The low part of a lifted convolution comes first, and its channels come first in the concatenation.
    found[name] = np.concatenate([found[name], kernel], axis=2) if name in found else kernel
    if len(node.input) > 2:
        found[f"{layer}/bias"] = values[node.input[2]].ravel()


def _constant(node: onnx.NodeProto, values: Arrays) -> npt.NDArray[Any]:
    return next(values[name] for name in node.input if name in values)


def _layer(name: str) -> str:
    """The layer in a name such as "resnet50_1/conv1_conv_1/convolution/ReadVariableOp:0"."""
    parts = name.split("/")
    return _SUFFIX.sub("", parts[1]) if len(parts) > 2 else name
