"""The layers of a network or an engine with their precisions, as TensorRT tells them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.plans.toolkit import Toolkit

if TYPE_CHECKING:
    import tensorrt as trt

# By DataType's names, and by the words of the engine inspector ("Half", or "Row major linear FP16 format").
_PRECISIONS: Final[Mapping[str, str]] = {
    "HALF": "FP16",
    "FP16": "FP16",
    "FLOAT": "FP32",
    "FP32": "FP32",
    "BF16": "BF16",
    "BFLOAT16": "BF16",
    "UINT8": "UINT8",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
}
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: `kind` in TensorRT's word ("CONVOLUTION"), `precision` of its first output ("FP16")."""

    name: str
    kind: str
    precision: str


def network_layers(network: trt.INetworkDefinition) -> tuple[Layer, ...]:
    """The layers of a parsed network, as TensorRT means to compute them."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return tuple(
        Layer(
            layer.name,
            layer.type.name,
            _precision(layer.get_output(0).dtype.name) if layer.num_outputs else _UNKNOWN,
        )
        for layer in layers
    )


def engine_layers(engine: trt.ICudaEngine, toolkit: Toolkit) -> tuple[Layer, ...]:
    """The layers of a built engine, fused as they are run; those it cannot describe are "unknown"."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = toolkit.module
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return ()
    form = trt.LayerInformationFormat.JSON
    return tuple(
        _inspected(inspector.get_layer_information(index, form)) for index in range(engine.num_layers)
    )


def _inspected(text: str) -> Layer:
    try:
        fields = json.loads(text)
    except ValueError:  # TensorRT does not escape quotes in names
        fields = text
    match fields:
        case {"Name": str(name), "LayerType": str(kind), "Outputs": [{"Format/Datatype": str(words)}, *_]}:
            return Layer(name, kind, _precision(words))
        case {"Name": str(name)}:
            return Layer(name, _UNKNOWN, _UNKNOWN)
        case _:
            return Layer(" ".join(text.split()), _UNKNOWN, _UNKNOWN)


def _precision(words: str) -> str:
    known = (_PRECISIONS.get(word) for word in words.upper().split())
    return next((precision for precision in known if precision), _UNKNOWN)
