from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

keras = pytest.importorskip("keras", reason="needs the train extra")
onnx = pytest.importorskip("onnx", reason="needs the train extra")
pytest.importorskip("tf2onnx", reason="needs the train extra")

import onnxruntime as ort  # noqa: E402

from trainer.normalise import ImageNetBGR, SliceStandardise  # noqa: E402
from trainer.onnx_graphs import (  # noqa: E402
    classifier_graph,
    fold_for_export,
    save_graph,
    segmenter_graph,
    store_kernels_as_float16,
    with_temperature,
)

layers = keras.layers

SIDE = 16
THRESHOLD = 0.4
Answer = dict[str, npt.NDArray[Any]]


def small_segmenter() -> keras.Model:
    """Two upsamplings, a joint with a skip, normalisations behind a linear convolution, a relu, a fork."""
    images = keras.Input((SIDE, SIDE, 3), name="images")
    x = SliceStandardise(name="standardise")(images)
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="relu_conv")(x)
    x = layers.BatchNormalization(name="bn_behind_relu")(x)
    skip = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv")(x)
    skip = layers.ReLU()(layers.BatchNormalization(name="bn_behind_conv")(skip))
    fork = layers.Conv2D(16, 3, padding="same", name="fork_conv")(layers.MaxPooling2D(4)(skip))
    x = layers.Add()([layers.BatchNormalization(name="bn_behind_fork")(fork), fork])
    x = layers.UpSampling2D(2, interpolation="nearest", name="up1")(x)
    x = layers.Conv2D(16, 3, padding="same", name="up_conv1")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="up_bn1")(x))
    x = layers.UpSampling2D(2, interpolation="nearest", name="up2")(x)
    x = layers.Conv2D(16, 1, name="joint_conv")(layers.Concatenate()([x, skip]))
    x = layers.ReLU()(layers.BatchNormalization(name="joint_bn")(x))
    logits = layers.Conv2D(1, 1, name="logits")(x)
    return keras.Model(images, layers.Activation("sigmoid", name="mask")(logits), name="small")


def small_classifier() -> keras.Model:
    images = keras.Input((SIDE, SIDE, 3), name="images")
    x = ImageNetBGR(name="imagenet_bgr")(images)
    x = layers.Conv2D(16, 3, strides=2, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.Dropout(0.3)(layers.Dense(32, activation="relu")(layers.Flatten()(x)))
    return keras.Model(images, layers.Softmax()(layers.Dense(2)(x)), name="small_classifier")


def randomise(model: keras.Model, *, powers_of_two: bool = False) -> keras.Model:
    """Weights as after a training; with powers of two, folding and rounding to float16 lose nothing."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.gamma.shape
            gamma, variance = rng.uniform(0.5, 1.5, shape), rng.uniform(0.2, 4, shape)
            if powers_of_two:
                gamma, variance = rng.choice([0.5, 1.0, -2.0], shape), 4.0 - np.full(shape, layer.epsilon)
            layer.set_weights([gamma, rng.normal(size=shape), rng.normal(size=shape), variance])
        elif layer.weights:
            kernel, *bias = layer.get_weights()
            kernel = rng.normal(0, 0.15, kernel.shape).astype(np.float16).astype(np.float32)
            layer.set_weights([kernel, *(rng.normal(0, 0.1, value.shape) for value in bias)])
    return model


@pytest.fixture(scope="module")
def slices() -> npt.NDArray[np.uint8]:
    """Noise, and two constant slices."""
    images = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)
    images[3], images[4] = 0, 255
    return images


@pytest.fixture(scope="module")
def folded() -> keras.Model:
    return fold_for_export(randomise(small_segmenter()))


@pytest.fixture(scope="module")
def segmenter(folded: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("segmenter") / "segmenter.onnx"
    save_graph(segmenter_graph(folded, THRESHOLD), path)
    return path


@pytest.fixture(scope="module")
def folded_classifier() -> keras.Model:
    return fold_for_export(randomise(small_classifier()))


@pytest.fixture(scope="module")
def classifier(folded_classifier: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "classifier.onnx"
    save_graph(classifier_graph(folded_classifier), path)
    return path


def answer(path: Path, images: npt.NDArray[np.uint8]) -> Answer:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def attributes(node: Any) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def described(values: Any) -> dict[str, tuple[int, list[int | str]]]:
    """Element type and shape of a graph's inputs or outputs."""
    types = {value.name: value.type.tensor_type for value in values}
    return {
        name: (kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim])
        for name, kind in types.items()
    }


@pytest.mark.parametrize("build", [small_segmenter, small_classifier])
def test_folding_changes_no_answer(build: Any, slices: npt.NDArray[np.uint8]) -> None:
    model = randomise(build(), powers_of_two=True)
    before = np.asarray(model(slices, training=False))
    after = np.asarray(fold_for_export(model)(slices, training=False))
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert before.std() > 0.01


def test_only_a_normalisation_right_behind_a_linear_convolution_is_folded(folded: keras.Model) -> None:
    left = [layer.name for layer in folded.layers if isinstance(layer, layers.BatchNormalization)]
    assert left == ["bn_behind_relu", "bn_behind_fork"]
    assert folded.get_layer("conv").use_bias


def test_the_model_that_was_folded_keeps_its_weights(slices: npt.NDArray[np.uint8]) -> None:
    model = randomise(small_segmenter())
    before = model.get_weights()
    fold_for_export(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_model_trained_in_half_precision_is_exported_in_float32(slices: npt.NDArray[np.uint8]) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = randomise(small_segmenter())
    finally:
        keras.config.set_dtype_policy("float32")
    after = fold_for_export(model)
    assert {layer.compute_dtype for layer in after.layers} == {"float32"}
    same = fold_for_export(randomise(small_segmenter()))
    np.testing.assert_array_equal(
        np.asarray(after(slices, training=False)), np.asarray(same(slices, training=False))
    )


def test_kernels_are_rounded_to_float16_and_vectors_are_not(folded: keras.Model) -> None:
    kernels = [np.asarray(value) for value in folded.weights if len(value.shape) > 1]
    vectors = [np.asarray(value) for value in folded.weights if len(value.shape) == 1]
    assert all(np.array_equal(kernel.astype(np.float16).astype(np.float32), kernel) for kernel in kernels)
    assert not all(np.array_equal(vector.astype(np.float16).astype(np.float32), vector) for vector in vectors)


def test_kernels_are_stored_as_float16(segmenter: Path, folded: keras.Model) -> None:
    stored = {tensor.name: tensor for tensor in onnx.load(segmenter).graph.initializer}
    halves = [tensor for tensor in stored.values() if tensor.data_type == onnx.TensorProto.FLOAT16]
    kernels = [value for value in folded.weights if len(value.shape) == 4 and np.prod(value.shape) >= 256]
    # By their sum: a 1x1 convolution behind an upsampling is stored in two parts.
    assert sum(int(np.prod(tensor.dims)) for tensor in halves) == sum(
        int(np.prod(kernel.shape)) for kernel in kernels
    )
    assert len(halves) == len(kernels) + 1
    large = [t for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) >= 256]
    assert large == []


def test_a_large_kernel_that_is_not_rounded_is_refused() -> None:
    kernel = onnx.numpy_helper.from_array(np.full((16, 32), 0.1, np.float32), "kernel")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 16])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 32])
    node = onnx.helper.make_node("MatMul", ["x", "kernel"], ["y"])
    graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [result], [kernel]))
    with pytest.raises(ValueError, match=r"kernel \[16, 32\] is no longer rounded"):
        store_kernels_as_float16(graph)


def test_each_upsampling_is_one_resize_asymmetric_and_floor(segmenter: Path) -> None:
    nodes = onnx.load(segmenter).graph.node
    counts = Counter(node.op_type for node in nodes)
    assert counts["Resize"] == 2
    assert counts["Concat"] == 0  # the joint's 1x1 convolution is computed before the upsampling
    assert not {"Tile", "Gather", "GatherND", "Loop"} & set(counts)
    assert counts["Slice"] == 1  # the one channel of the probabilities
    for node in nodes:
        if node.op_type == "Resize":
            assert attributes(node) == {
                "coordinate_transformation_mode": b"asymmetric",
                "mode": b"nearest",
                "nearest_mode": b"floor",
            }


def test_the_segmenter_takes_uint8_and_gives_what_the_design_names(segmenter: Path) -> None:
    graph = onnx.load(segmenter).graph
    types = onnx.TensorProto
    assert described(graph.input) == {"images": (types.UINT8, ["N", SIDE, SIDE, 3])}
    assert described(graph.output) == {
        "mask": (types.UINT8, ["N", SIDE, SIDE]),
        "mask_pixels": (types.INT32, ["N"]),
        "mask_probability": (types.UINT8, ["N", SIDE, SIDE]),
    }
    assert onnx.load(segmenter).opset_import[0].version == 18


def test_the_classifier_takes_uint8_and_gives_the_tumour_probability(classifier: Path) -> None:
    graph = onnx.load(classifier).graph
    assert described(graph.input) == {"images": (onnx.TensorProto.UINT8, ["N", SIDE, SIDE, 3])}
    assert described(graph.output) == {"tumor_probability": (onnx.TensorProto.FLOAT, ["N"])}


def test_the_segmenter_answers_as_keras_does(
    segmenter: Path, folded: keras.Model, slices: npt.NDArray[np.uint8]
) -> None:
    probability = np.asarray(folded(slices, training=False))[..., 0]
    given = answer(segmenter, slices)
    clear = np.abs(probability - THRESHOLD) > 1e-5
    np.testing.assert_array_equal(given["mask"][clear], (probability >= THRESHOLD)[clear])
    assert set(np.unique(given["mask"])) == {0, 1}
    np.testing.assert_array_equal(given["mask_pixels"], given["mask"].sum(axis=(1, 2), dtype=np.int32))
    assert np.abs(given["mask_probability"] - 255 * probability).max() <= 0.5 + 1e-2


def test_the_classifier_answers_as_keras_does(
    classifier: Path, folded_classifier: keras.Model, slices: npt.NDArray[np.uint8]
) -> None:
    expected = np.asarray(folded_classifier(slices, training=False))[:, 1]
    np.testing.assert_allclose(answer(classifier, slices)["tumor_probability"], expected, atol=1e-5)


def test_a_constant_slice_gives_numbers(
    segmenter: Path, classifier: Path, slices: npt.NDArray[np.uint8]
) -> None:
    constant = slices[3:]
    assert np.isfinite(answer(classifier, constant)["tumor_probability"]).all()
    given = answer(segmenter, constant)
    # Zeros after standardisation, whatever the grey level was; a NaN would be cast to any value.
    np.testing.assert_array_equal(given["mask_probability"][0], given["mask_probability"][1])
    assert len(np.unique(given["mask_probability"][0])) > 1


def test_any_number_of_slices_can_be_asked_and_each_is_answered_by_itself(
    segmenter: Path, slices: npt.NDArray[np.uint8]
) -> None:
    together = answer(segmenter, slices)
    for i in range(len(slices)):
        alone = answer(segmenter, slices[i : i + 1])
        assert np.abs(alone["mask_probability"][0].astype(int) - together["mask_probability"][i]).max() <= 1


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_a_temperature_divides_the_logits_in_the_graph(
    slices: npt.NDArray[np.uint8], tmp_path: Path, temperature: float
) -> None:
    unsure = fold_for_export(small_classifier())
    unsure.layers[-2].kernel.assign(unsure.layers[-2].kernel * 2**-6)
    mended = with_temperature(unsure, temperature)
    save_graph(classifier_graph(mended), tmp_path / "classifier.onnx")
    found = answer(tmp_path / "classifier.onnx", slices)["tumor_probability"]
    logits = keras.Model(unsure.input, unsure.layers[-1].input)(slices)
    clear, tumour = np.asarray(logits, np.float64).T
    np.testing.assert_allclose(found, 1 / (1 + np.exp((clear - tumour) / temperature)), atol=1e-5)
    assert np.abs(found - np.asarray(unsure(slices))[:, 1]).max() > 1e-3


def test_a_temperature_of_one_changes_nothing(folded_classifier: keras.Model) -> None:
    assert with_temperature(folded_classifier, 1.0) is folded_classifier


def test_a_temperature_needs_a_softmax(folded: keras.Model) -> None:
    with pytest.raises(ValueError, match="before a Softmax"):
        with_temperature(folded, 2.0)
