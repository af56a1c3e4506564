from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

onnx = pytest.importorskip("onnx", reason="needs the train extra")

import onnxruntime as ort  # noqa: E402

from tests.int8bundle import residual_classifier  # noqa: E402
from tests.tinybundle import segmenter_graph, tiny_slices  # noqa: E402
from trainer.int8_graph import LEAST_STEP, TOP, find_sites, kernels, prepared, upward  # noqa: E402
from trainer.quantise import calibrate  # noqa: E402

CONVOLUTIONS = tuple(
    f"{name}_node"
    for name in ("stem", "one_short", "one_1", "one_2", "one_3", "two_short", "two_1", "two_2", "two_3")
)
IMAGES = tiny_slices(6)


def float_graph() -> bytes:
    whole: bytes = residual_classifier().SerializeToString()
    return whole


@pytest.fixture(scope="module")
def made() -> Any:
    return onnx.load_model_from_string(calibrate(float_graph(), IMAGES).graph(()))


def constants(model: Any) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def makers(model: Any) -> dict[str, Any]:
    return {name: node for node in model.graph.node for name in node.output}


def run(model: bytes) -> npt.NDArray[np.float32]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    found: npt.NDArray[np.float32] = session.run(None, {"images": IMAGES})[0]
    return found


def test_a_prepared_graph_gives_the_same_numbers() -> None:
    np.testing.assert_array_equal(run(prepared(float_graph()).SerializeToString()), run(float_graph()))


def test_kernels_stored_as_float16_are_prepared_and_stored_so_again() -> None:
    from trainer.onnx_graphs import store_kernels_as_float16

    model = residual_classifier()
    model.graph.initializer[[t.name for t in model.graph.initializer].index("dense")].CopyFrom(
        onnx.numpy_helper.from_array(np.zeros((16, 2), np.float32), "dense")
    )
    stored = store_kernels_as_float16(model).SerializeToString()
    assert "Cast" not in {node.op_type for node in prepared(stored).graph.node if node.input[0] != "images"}
    left = onnx.load_model_from_string(calibrate(stored, IMAGES).graph(("one_2_node",)))
    assert constants(left)["one_2_kernel/float16"].dtype == np.float16


def test_every_convolution_has_an_int8_kernel_with_a_step_a_channel_and_a_float_bias(made: Any) -> None:
    values, made_by = constants(made), makers(made)
    convolutions = [node for node in made.graph.node if node.op_type == "Conv"]
    assert tuple(node.name for node in convolutions) == CONVOLUTIONS
    for node in convolutions:
        kernel = made_by[node.input[1]]
        stored, steps = values[kernel.input[0]], values[kernel.input[1]]
        assert (kernel.op_type, stored.dtype, np.abs(stored).max() <= TOP) == (
            "DequantizeLinear",
            np.int8,
            True,
        )
        assert steps.shape == stored.shape[:1]
        assert values[node.input[2]].dtype == np.float32
        assert made_by[node.input[0]].op_type in ("DequantizeLinear", "MaxPool")


def test_everything_is_signed_with_zero_point_0_and_steps_that_are_float16_numbers(made: Any) -> None:
    values = constants(made)
    assert {opset.version for opset in made.opset_import} == {19}
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear":
            assert (values[node.input[2]].dtype, int(values[node.input[2]])) == (np.int8, 0)
        if node.op_type == "DequantizeLinear":
            assert len(node.input) == 2
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            steps = values[node.input[1]]
            np.testing.assert_array_equal(steps, steps.astype(np.float16))


def test_the_shortcut_of_each_sum_is_rounded_and_the_longer_way_is_not(made: Any) -> None:
    made_by = makers(made)
    sums = [node for node in made.graph.node if node.op_type == "Add" and node.output[0].endswith("_sum")]
    for node in sums:
        shortcut, longer = (made_by[name] for name in node.input)
        assert (shortcut.op_type, longer.op_type) == ("DequantizeLinear", "Conv")


def test_a_pool_is_computed_in_int8(made: Any) -> None:
    made_by = makers(made)
    pool = next(node for node in made.graph.node if node.name.startswith("MaxPool"))
    assert made_by[pool.input[0]].op_type == "DequantizeLinear"


def test_the_answers_stay_close(made: Any) -> None:
    assert np.abs(run(made.SerializeToString()) - run(float_graph())).max() < 0.02


def test_convolutions_left_in_float_read_and_give_what_they_did() -> None:
    model = prepared(float_graph())
    sites = find_sites(model, ("stem_node", "one_3_node"))
    assert "planes" not in sites.tensors
    assert set(CONVOLUTIONS) - set(sites.convolutions) == {"stem_node", "one_3_node"}
    whole = onnx.load_model_from_string(calibrate(float_graph(), IMAGES).graph(("stem_node",)))
    stem = next(node for node in whole.graph.node if node.name == "stem_node")
    assert stem.input[0] == "planes"
    assert constants(whole)[f"{stem.input[1]}/float16"].dtype == np.float16


def test_what_a_float_convolution_reads_behind_a_pool_is_not_rounded() -> None:
    model = prepared(float_graph())
    sites = find_sites(model, ("one_1_node",))
    assert "stem_relu" not in sites.tensors
    assert [reader.node for reader in sites.tensors["pooled"]] == ["one_short_node"]


def test_the_same_slices_give_the_same_bytes() -> None:
    assert calibrate(float_graph(), IMAGES).graph(()) == calibrate(float_graph(), IMAGES).graph(())


def test_a_graph_of_one_convolution_has_nothing_else_in_int8() -> None:
    model = prepared(segmenter_graph().SerializeToString())
    sites = find_sites(model)
    assert (len(sites.convolutions), list(sites.tensors)) == (1, ["planes"])


def test_convolutions_in_groups_or_dilated_stay_in_float() -> None:
    model = residual_classifier()
    for name, attribute, value in (("one_2_node", "dilations", [2, 2]), ("one_3_node", "group", 1)):
        node = next(node for node in model.graph.node if node.name == name)
        node.attribute.append(onnx.helper.make_attribute(attribute, value))
    assert "one_2_node" not in kernels(model)
    assert "one_3_node" in kernels(model)


def test_steps_are_rounded_up_to_float16_and_end_before_it_gets_too_coarse() -> None:
    exact = np.array([1 / 3, 1.0, 5e-5, 0.0])
    steps = upward(exact)
    assert steps.dtype == np.float16
    assert (steps >= exact).all()
    assert (steps[:3] <= exact[:3] * 1.02).all()
    assert steps[3] == LEAST_STEP
