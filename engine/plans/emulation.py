"""What FP16 does to a model, shown on a CPU."""

from __future__ import annotations

import numpy as np


def emulated(graph: bytes) -> bytes:
    """An FP16 graph (`engine.plans.half`) in float32, every float16 tensor rounded where it is computed.

    ONNX Runtime's CPU provider computes a float16 graph in float32 and leaves out the rounding between its
    nodes, so it would flatter the graph. Sums inside a node stay in float32, as in a GPU's tensor cores.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    whole = onnx.load_model_from_string(graph)
    values = onnx.shape_inference.infer_shapes(whole).graph.value_info
    half = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for tensor in whole.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            exact = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in whole.graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in half:
                node.output[i] = f"{name}_exact"
                nodes += [
                    helper.make_node("Cast", [f"{name}_exact"], [f"{name}_round"], to=TensorProto.FLOAT16),
                    helper.make_node("Cast", [f"{name}_round"], [name], to=TensorProto.FLOAT),
                ]
    whole.graph.ClearField("node")
    whole.graph.node.extend(nodes)
    made: bytes = whole.SerializeToString()
    return made
