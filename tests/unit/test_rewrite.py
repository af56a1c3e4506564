from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

keras = pytest.importorskip("keras", reason="needs the train extra")
onnx = pytest.importorskip("onnx", reason="needs the train extra")
pytest.importorskip("tf2onnx", reason="needs the train extra")

import onnxruntime as ort  # noqa: E402

from tests.tinybundle import tiny_slices  # noqa: E402
from trainer import onnx_graphs  # noqa: E402
from trainer.rewrite import lift_convolutions  # noqa: E402
from trainer.segmenter import build_segmenter  # noqa: E402

THRESHOLD = 0.5
Array = npt.NDArray[Any]

RESIZE = 'Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
JOINT = f"""
    up = {RESIZE} (x, , factors)
    both = Concat <axis = 1> (up, skip)
    main = Conv <kernel_shape = [1, 1]> (both, main_kernel, main_bias)
    short = Conv <kernel_shape = [1, 1]> (both, short_kernel)
    relu = Relu (main)
    y = Add (relu, short)
"""
"""A joint as the segmenter has it: x and what comes out of the skip, read by two 1x1 convolutions."""


def joint(body: str = JOINT, main_kernel: tuple[int, ...] = (6, 8, 1, 1)) -> Any:
    """A graph from x `[N,5,4,4]` and skip `[N,3,8,8]` to y."""
    rng = np.random.default_rng(2)
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\n'
        f"joint (float[N,5,4,4] x, float[N,3,8,8] skip) => (float[N,6,H,W] y) {{{body}}}"
    )
    weights = {
        "factors": np.array([1, 1, 2, 2], np.float32),
        "main_kernel": rng.normal(size=main_kernel).astype(np.float16).astype(np.float32),
        "main_bias": rng.normal(size=6).astype(np.float32),
        "short_kernel": rng.normal(size=(6, 8, 1, 1)).astype(np.float16).astype(np.float32),
    }
    graph.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    onnx.checker.check_model(graph, full_check=True)
    return graph


def plain_segmenter() -> Any:
    """The article's network as the converter gives it; its logits are a few units, as after a training."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    model = build_segmenter()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            mean, variance = rng.normal(0, 0.1, shape), rng.uniform(0.5, 2, shape)
            layer.set_weights([rng.uniform(0.5, 1.5, shape), rng.normal(0, 0.1, shape), mean, variance])
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([kernel / 8, bias + 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graphs, "lift_convolutions", lambda graph: graph)
        return onnx_graphs.segmenter_graph(onnx_graphs.fold_for_export(model), THRESHOLD)


@pytest.fixture(scope="module")
def plain() -> Any:
    return plain_segmenter()


@pytest.fixture(scope="module")
def lifted(plain: Any) -> Any:
    return lift_convolutions(plain)


def answers(graph: Any, feeds: dict[str, Array], *, extra: str | None = None) -> dict[str, Array]:
    """What a graph gives, and the float tensor `extra` beside it."""
    asked = onnx.ModelProto()
    asked.CopyFrom(graph)
    if extra:
        asked.graph.output.append(onnx.helper.make_tensor_value_info(extra, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(asked.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def counts(graph: Any) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


def multiplications(graph: Any) -> int:
    """Multiply-accumulates of the convolutions, a slice."""
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True).graph
    values = [*inferred.value_info, *inferred.output]
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[2:]] for value in values}
    kernels = {tensor.name: tensor.dims for tensor in inferred.initializer}
    convolutions = [node for node in inferred.node if node.op_type == "Conv"]
    return sum(
        int(np.prod([*sizes[node.output[0]], *kernels[node.input[1]]], dtype=np.int64))
        for node in convolutions
    )


def kernels(graph: Any) -> dict[str, Array]:
    """Of the convolutions, by what each one gives."""
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    return {node.output[0]: tensors[node.input[1]] for node in graph.graph.node if node.op_type == "Conv"}


def serialised(graph: Any) -> bytes:
    content: bytes = graph.SerializeToString(deterministic=True)
    return content


@pytest.mark.parametrize("order", ["up, skip", "skip, up"])
def test_the_answers_of_a_joint_stay_whichever_part_is_upsampled(order: str) -> None:
    rng = np.random.default_rng(3)
    feeds = {
        "x": rng.normal(size=(2, 5, 4, 4)).astype(np.float32),
        "skip": rng.normal(size=(2, 3, 8, 8)).astype(np.float32),
    }
    graph = joint(JOINT.replace("up, skip", order))
    after = lift_convolutions(graph)
    onnx.checker.check_model(after, full_check=True)
    assert counts(after) == {"Conv": 4, "Resize": 2, "Add": 3, "Relu": 1}
    np.testing.assert_allclose(answers(after, feeds)["y"], answers(graph, feeds)["y"], atol=1e-5)


def test_the_bias_is_added_once_and_at_the_large_side() -> None:
    nodes = lift_convolutions(joint()).graph.node
    biased = [node.output[0] for node in nodes if node.op_type == "Conv" and len(node.input) == 3]
    assert biased == ["main/skip"]


ONE = "<kernel_shape = [1, 1]>"
LAST = "y = Add (relu, short)"
PEEK = "peek = ReduceMax (up)\n y = Sum (relu, short, peek)"
OTHER_JOINTS = {
    "a 3x3 convolution": (JOINT.replace(ONE, "<pads = [1, 1, 1, 1]>", 1), (6, 8, 3, 3)),
    "a stride": (JOINT.replace(ONE, "<strides = [2, 2]>"), (6, 8, 1, 1)),
    "padding": (JOINT.replace(ONE, "<pads = [1, 1, 1, 1]>"), (6, 8, 1, 1)),
    "groups": (JOINT.replace(ONE, "<group = 2>", 1), (6, 4, 1, 1)),
    "linear upsampling": (JOINT.replace("nearest", "linear", 1), (6, 8, 1, 1)),
    "another reader": (JOINT.replace(LAST, PEEK.replace("up", "both")), (6, 8, 1, 1)),
}


@pytest.mark.parametrize(("body", "main_kernel"), OTHER_JOINTS.values(), ids=OTHER_JOINTS.keys())
def test_a_joint_with_something_else_in_it_passes_unchanged(body: str, main_kernel: tuple[int, ...]) -> None:
    graph = joint(body, main_kernel)
    assert serialised(lift_convolutions(graph)) == serialised(graph)


def test_a_concatenation_that_the_graph_gives_passes_unchanged() -> None:
    graph = joint()
    graph.graph.output.append(onnx.helper.make_tensor_value_info("both", onnx.TensorProto.FLOAT, None))
    assert serialised(lift_convolutions(graph)) == serialised(graph)


def test_an_upsampling_that_somebody_else_reads_stays() -> None:
    rng = np.random.default_rng(4)
    feeds = {
        "x": rng.normal(size=(1, 5, 4, 4)).astype(np.float32),
        "skip": rng.normal(size=(1, 3, 8, 8)).astype(np.float32),
    }
    graph = joint(JOINT.replace(LAST, PEEK))
    after = lift_convolutions(graph)
    assert counts(after)["Resize"] == 3
    np.testing.assert_allclose(answers(after, feeds)["y"], answers(graph, feeds)["y"], atol=1e-5)


def test_the_graph_that_was_rewritten_stays_as_it_was_and_is_not_rewritten_again() -> None:
    graph = joint()
    before = serialised(graph)
    once = lift_convolutions(graph)
    assert serialised(graph) == before != serialised(once)
    assert serialised(lift_convolutions(once)) == serialised(once)


def test_the_segmenter_answers_as_it_did(plain: Any, lifted: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3)).astype(np.uint8)
    feeds = {"images": np.concatenate([tiny_slices(3), noise])}
    name = next(node.input[0] for node in plain.graph.node if node.op_type == "GreaterOrEqual")
    before, after = answers(plain, feeds, extra=name), answers(lifted, feeds, extra=name)
    probability = before[name]
    assert np.abs(after[name] - probability).max() <= 1e-5
    clear = np.abs(probability - THRESHOLD) > 1e-5
    np.testing.assert_array_equal(after["mask"][clear], before["mask"][clear])
    assert 0.1 < before["mask"].mean() < 0.9
    assert probability.std() > 0.1


def test_the_segmenter_multiplies_a_tenth_less(plain: Any, lifted: Any) -> None:
    assert round(multiplications(plain) / 1e9, 2) == 1.86
    assert round(multiplications(lifted) / 1e9, 2) == 1.66


def test_each_upsampling_of_the_segmenter_is_lifted_over(plain: Any, lifted: Any) -> None:
    before, after = counts(plain), counts(lifted)
    assert (before["Conv"], before["Resize"], before["Concat"]) == (27, 4, 4)
    assert (after["Conv"], after["Resize"], after["Concat"]) == (35, 8, 0)
    assert not set(after) - set(before)  # no operator that a runtime had not to know before


def test_the_segmenters_kernels_keep_every_number(plain: Any, lifted: Any) -> None:
    before, after = kernels(plain), kernels(lifted)
    for name, kernel in before.items():
        parts = [after[name]] if name in after else [after[f"{name}/low"], after[f"{name}/skip"]]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), kernel)


def test_the_segmenter_is_stored_as_it_was(lifted: Any) -> None:
    stored = onnx_graphs.store_kernels_as_float16(lifted)
    onnx.checker.check_model(stored, full_check=True)
    large = [t for t in stored.graph.initializer if np.prod(t.dims) >= 512 and len(t.dims) > 1]
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}
    read = {name for node in stored.graph.node for name in node.input}
    assert {tensor.name for tensor in stored.graph.initializer} <= read


def test_the_segmenter_is_not_rewritten_again(lifted: Any) -> None:
    assert serialised(lift_convolutions(lifted)) == serialised(lifted)
