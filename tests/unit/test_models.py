from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine.errors import UsageError

keras = pytest.importorskip("keras", reason="needs the train extra")

from trainer.classifier import build_classifier, load_weights_by_layer  # noqa: E402
from trainer.normalise import ImageNetBGR, UnitRange  # noqa: E402
from trainer.segmenter import build_segmenter  # noqa: E402

layers = keras.layers


@pytest.fixture(scope="module")
def segmenter() -> keras.Model:
    keras.utils.set_random_seed(0)
    return build_segmenter(momentum=0.5)


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    return build_classifier(imagenet_input=True, momentum=0.7)


@pytest.fixture(scope="module")
def slices() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3)).astype(np.uint8)


def of_type(model: keras.Model, kind: type[Any]) -> list[Any]:
    return [layer for layer in model.layers if type(layer) is kind]


def convolutions(model: keras.Model, prefix: str) -> list[tuple[int, tuple[int, int]]]:
    """Filters and kernel of the convolutions whose names begin so."""
    found = [layer for layer in of_type(model, layers.Conv2D) if layer.name.startswith(prefix)]
    return [(layer.filters, layer.kernel_size) for layer in found]


def test_the_segmenter_has_as_many_weights_as_the_articles(segmenter: keras.Model) -> None:
    assert segmenter.count_params() == 1_210_513


def test_the_stem_is_two_relu_convolutions_each_with_its_normalisation(segmenter: keras.Model) -> None:
    assert convolutions(segmenter, "stem") == [(16, (3, 3)), (16, (3, 3))]
    names = [layer.name for layer in segmenter.layers if layer.name.startswith("stem")]
    assert names == ["stem_conv1", "stem_bn1", "stem_conv2", "stem_bn2"]
    assert {segmenter.get_layer(f"stem_conv{i}").activation for i in (1, 2)} == {keras.activations.relu}


@pytest.mark.parametrize(
    ("block", "filters", "side"),
    [
        ("down2", 32, 128),
        ("down3", 64, 64),
        ("down4", 128, 32),
        ("bottleneck", 256, 16),
        ("up4", 128, 32),
        ("up3", 64, 64),
        ("up2", 32, 128),
        ("up1", 16, 256),
    ],
)
def test_a_resblock_is_1x1_3x3_and_a_1x1_shortcut(
    segmenter: keras.Model, block: str, filters: int, side: int
) -> None:
    assert sorted(convolutions(segmenter, block)) == [(filters, (1, 1)), (filters, (1, 1)), (filters, (3, 3))]
    assert segmenter.get_layer(f"{block}_relu2").output.shape == (None, side, side, filters)
    assert segmenter.get_layer(f"{block}_conv1").input is segmenter.get_layer(f"{block}_short_conv").input
    norms = [x for x in of_type(segmenter, layers.BatchNormalization) if x.name.startswith(block)]
    assert len(norms) == 3


def test_upsampling_is_nearest_and_meets_the_skip_of_its_size(segmenter: keras.Model) -> None:
    upsamplings = of_type(segmenter, layers.UpSampling2D)
    assert [layer.interpolation for layer in upsamplings] == ["nearest"] * 4
    channels = [segmenter.get_layer(f"up{stage}_concat").output.shape[-1] for stage in (4, 3, 2, 1)]
    assert channels == [256 + 128, 128 + 64, 64 + 32, 32 + 16]
    assert len(of_type(segmenter, layers.MaxPooling2D)) == 4


def test_every_convolution_starts_he_normal_and_every_normalisation_has_the_momentum(
    segmenter: keras.Model,
) -> None:
    inner = [layer for layer in of_type(segmenter, layers.Conv2D) if layer.name != "logits"]
    assert {type(layer.kernel_initializer) for layer in inner} == {keras.initializers.HeNormal}
    assert {layer.momentum for layer in of_type(segmenter, layers.BatchNormalization)} == {0.5}


def test_the_segmenter_gives_a_probability_for_each_pixel(
    segmenter: keras.Model, slices: npt.NDArray[np.uint8]
) -> None:
    given = np.asarray(segmenter(slices, training=False))
    assert given.shape == (2, 256, 256, 1)
    assert given.dtype == np.float32
    assert 0 <= given.min() < given.max() <= 1


def test_the_segmenter_without_its_standardisation_takes_standardised_slices(
    segmenter: keras.Model, slices: npt.NDArray[np.uint8]
) -> None:
    bare = build_segmenter(standardise=False)
    bare.set_weights(segmenter.get_weights())
    ready = segmenter.get_layer("standardise")(slices)
    np.testing.assert_allclose(
        np.asarray(bare(ready, training=False)), np.asarray(segmenter(slices, training=False)), atol=1e-6
    )


def test_mixed_precision_ends_in_float32() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_segmenter()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("up1_conv2").compute_dtype == "bfloat16"
    assert {model.get_layer(name).compute_dtype for name in ("standardise", "logits", "mask")} == {"float32"}


def test_the_head_is_pool_dense_dense_softmax(classifier: keras.Model) -> None:
    names = [layer.name for layer in classifier.layers]
    head = names[names.index("head_pool") :]
    assert head == [
        "head_pool",
        "head_flatten",
        "head_dense1",
        "head_dropout1",
        "head_dense2",
        "head_dropout2",
        "logits",
        "classes",
    ]
    assert classifier.get_layer("head_pool").pool_size == (4, 4)
    assert classifier.get_layer("head_flatten").output.shape == (None, 2 * 2 * 2048)
    assert [classifier.get_layer(f"head_dense{i}").units for i in (1, 2)] == [256, 256]
    assert [classifier.get_layer(f"head_dropout{i}").rate for i in (1, 2)] == [0.3, 0.3]
    assert {layer.momentum for layer in of_type(classifier, layers.BatchNormalization)} == {0.7}


def test_the_classifier_gives_two_probabilities_that_add_up_to_1(
    classifier: keras.Model, slices: npt.NDArray[np.uint8]
) -> None:
    given = np.asarray(classifier(slices[:1], training=False))
    assert given.shape == (1, 2)
    assert given.sum() == pytest.approx(1.0, abs=1e-5)


def test_imagenet_weights_get_the_imagenet_normalisation_and_others_0_to_1(classifier: keras.Model) -> None:
    scratch = build_classifier(imagenet_input=False)
    bare = build_classifier(imagenet_input=False, normalise=False)
    assert [type(layer) for layer in classifier.layers[:2]] == [layers.InputLayer, ImageNetBGR]
    assert [type(layer) for layer in scratch.layers[:2]] == [layers.InputLayer, UnitRange]
    assert type(bare.layers[1]) is layers.ZeroPadding2D
    assert classifier.count_params() == scratch.count_params() == bare.count_params()


def write_weights(path: Path, **arrays: npt.NDArray[Any]) -> Path:
    np.savez(path, **{name.replace("__", "/"): array for name, array in arrays.items()})
    return path


def test_weights_are_filled_in_by_layer_name_and_the_layers_named(
    classifier: keras.Model, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(7, 7, 3, 64)).astype(np.float32)
    mean, gamma = rng.normal(size=64), rng.normal(size=64)
    path = write_weights(
        tmp_path / "part.npz",
        conv1_bn__gamma=gamma,
        conv1_bn__moving_mean=mean,
        conv1_conv__kernel=kernel,
        another_model__kernel=kernel,
    )
    untouched = classifier.get_layer("conv2_block1_1_conv").get_weights()
    assert load_weights_by_layer(classifier, path) == ["conv1_conv", "conv1_bn"]
    np.testing.assert_array_equal(classifier.get_layer("conv1_conv").kernel, kernel)
    np.testing.assert_allclose(classifier.get_layer("conv1_bn").gamma, gamma, rtol=1e-6)
    np.testing.assert_allclose(classifier.get_layer("conv1_bn").moving_mean, mean, rtol=1e-6)
    for before, after in zip(
        untouched, classifier.get_layer("conv2_block1_1_conv").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_an_array_of_another_shape_is_refused_with_both_shapes(
    classifier: keras.Model, tmp_path: Path
) -> None:
    path = write_weights(tmp_path / "odd.npz", conv1_conv__kernel=np.zeros((3, 3, 3, 64), np.float32))
    with pytest.raises(
        UsageError, match=r"conv1_conv/kernel has shape \(3, 3, 3, 64\).*wants \(7, 7, 3, 64\)"
    ):
        load_weights_by_layer(classifier, path)


def test_a_file_that_names_no_layer_is_refused(classifier: keras.Model, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "other.npz", block1__kernel=np.zeros(3))
    with pytest.raises(UsageError, match="none of its 1 arrays names a layer of resnet50"):
        load_weights_by_layer(classifier, path)


@pytest.mark.parametrize("kind", ["text", "empty", "array", "cut", "missing"])
def test_a_file_that_is_no_archive_is_refused_by_name(
    classifier: keras.Model, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "weights.npz"
    if kind == "text":
        path.write_text("not weights")
    elif kind == "empty":
        path.touch()
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "cut":
        write_weights(path, conv1_conv__kernel=np.zeros((7, 7, 3, 64), np.float32))
        path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UsageError, match=r"weights\.npz"):
        load_weights_by_layer(classifier, path)
