"""Whether OpenVINO computes an int8 graph's convolutions in int8."""

from __future__ import annotations

from pathlib import Path

import onnx
import openvino as ov

from engine.errors import MachineError
from engine.runners.base import INPUT, SIDE
from engine.runners.openvino import unsign

_IN_INT8 = ("i8", "u8")


def expect_int8(graph: Path) -> None:
    """Raise `MachineError` where a convolution with an int8 kernel would be computed in float.

    That is slow, and it was seen to give other numbers each time the graph was loaded (OpenVINO 2026.4, a
    stride behind the rounding that it moved before it).
    """
    due = _int8_convolutions(onnx.load(graph))
    network = ov.Core().read_model(graph)
    network.reshape({INPUT: [1, SIDE, SIDE, 3]})
    unsign(network)
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    running = ov.Core().compile_model(network, "CPU", config).get_runtime_model()
    layers = [node.get_rt_info() for node in running.get_ordered_ops()]
    found = sum(
        layer["layerType"].value == "Convolution" and layer["runtimePrecision"].value in _IN_INT8
        for layer in layers
    )
    if found != due:
        raise MachineError(
            f"OpenVINO {ov.get_version()} computes {due - found} of the {due} int8 convolutions of {graph} "
            "in float: install another version of openvino"
        )


def _int8_convolutions(model: onnx.ModelProto) -> int:
    makers = {name: node for node in model.graph.node for name in node.output}
    kernels = [makers.get(node.input[1]) for node in model.graph.node if node.op_type == "Conv"]
    return sum(kernel is not None and kernel.op_type == "DequantizeLinear" for kernel in kernels)
