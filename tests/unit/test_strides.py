from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

onnx = pytest.importorskip("onnx", reason="needs the train extra")

import onnxruntime as ort  # noqa: E402

from tests.int8bundle import residual_classifier  # noqa: E402
from tests.tinybundle import tiny_slices  # noqa: E402
from trainer.strides import attributes, hoist_strides, merge_pads  # noqa: E402


def answers(model: Any) -> npt.NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: npt.NDArray[np.float32] = session.run(None, {"images": tiny_slices(4)})[0]
    return found


def strided(model: Any) -> dict[str, str]:
    """What reads or makes only every second pixel, and its kind."""
    return {
        node.name: node.op_type
        for node in model.graph.node
        if attributes(node).get("strides") == [2, 2] and attributes(node).get("kernel_shape") != [3, 3]
    }


def test_hoisted_strides_leave_every_probability_as_it_was() -> None:
    model = residual_classifier()
    before = answers(model)
    merge_pads(model)
    assert hoist_strides(model) == 6  # the first block's end, its sum, three convolutions, and a Relu between
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(answers(model), before)


def test_a_stride_ends_in_the_3x3_convolution_of_the_block_before() -> None:
    model = residual_classifier()
    assert set(strided(model)) == {"two_short_node", "two_1_node"}
    hoist_strides(model)
    nodes = {node.name: node for node in model.graph.node}
    assert attributes(nodes["one_2_node"])["strides"] == [2, 2]
    assert attributes(nodes["two_1_node"])["strides"] == [1, 1]
    assert hoist_strides(model) == 0


def test_a_tensor_that_something_else_reads_whole_keeps_all_its_pixels() -> None:
    model = residual_classifier()
    end = next(node for node in model.graph.node if node.name == "two_1_node").input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None))
    assert hoist_strides(model) == 0


def test_a_pad_goes_into_the_pool_behind_it() -> None:
    model = residual_classifier()
    merge_pads(model)
    assert "Pad" not in {node.op_type for node in model.graph.node}
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    assert attributes(pool)["pads"] == [1, 1, 1, 1]
    assert "edges" not in {tensor.name for tensor in model.graph.initializer}


@pytest.mark.parametrize("change", ["no relu", "not zero", "reflect"])
def test_a_pad_that_the_pool_would_do_otherwise_stays(change: str) -> None:
    model = residual_classifier()
    pad = next(node for node in model.graph.node if node.op_type == "Pad")
    if change == "no relu":
        pad.input[0] = "stem"
    elif change == "not zero":
        nothing = next(tensor for tensor in model.graph.initializer if tensor.name == "nothing")
        nothing.CopyFrom(onnx.numpy_helper.from_array(np.float32(1), "nothing"))
    else:
        pad.attribute.append(onnx.helper.make_attribute("mode", "reflect"))
    merge_pads(model)
    assert "Pad" in {node.op_type for node in model.graph.node}
