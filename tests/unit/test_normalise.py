from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

keras = pytest.importorskip("keras", reason="needs the train extra")

from trainer.loader import standardise  # noqa: E402
from trainer.normalise import ImageNetBGR, SliceStandardise, UnitRange  # noqa: E402

Bytes = npt.NDArray[np.uint8]


@pytest.fixture
def slices() -> Bytes:
    """[3,256,256,3]: noise over a black ground, as MRI slices are."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (3, 256, 256, 3)).astype(np.uint8)
    images[:, :90] = 0
    return images


def test_each_slice_is_standardised_by_itself(slices: Bytes) -> None:
    slices[1] //= 4
    given = np.asarray(SliceStandardise()(slices))
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, standardise(slices), atol=2e-6)
    np.testing.assert_allclose(np.asarray(SliceStandardise()(slices[1:2])), given[1:2], atol=1e-6)


@pytest.mark.parametrize("level", [0, 1, 7, 255])
def test_a_constant_slice_becomes_zeros(level: int) -> None:
    given = np.asarray(SliceStandardise()(np.full((1, 256, 256, 3), level, np.uint8)))
    np.testing.assert_allclose(given, 0.0, atol=1e-4)


def test_a_nearly_constant_slice_is_not_blown_up() -> None:
    images = np.full((1, 256, 256, 3), 40, np.uint8)
    images[0, 0, 0] = 41
    given = np.asarray(SliceStandardise()(images))
    assert 0.9 < given.max() < 1.1


def test_imagenet_input_is_what_the_keras_weights_expect(slices: Bytes) -> None:
    expected = keras.applications.resnet50.preprocess_input(slices.astype(np.float32))
    np.testing.assert_allclose(np.asarray(ImageNetBGR()(slices)), expected, atol=1e-4)


def test_unit_range_divides_by_255(slices: Bytes) -> None:
    np.testing.assert_allclose(np.asarray(UnitRange()(slices)), slices / 255.0, atol=1e-6)


@pytest.mark.parametrize("kind", [SliceStandardise, ImageNetBGR, UnitRange])
def test_a_model_in_half_precision_still_normalises_in_float32(
    kind: type[keras.layers.Layer], slices: Bytes
) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = kind(name="normalise")
    finally:
        keras.config.set_dtype_policy("float32")
    given = layer(slices)
    assert keras.backend.standardize_dtype(given.dtype) == "float32"
    np.testing.assert_array_equal(np.asarray(given), np.asarray(kind()(slices)))


@pytest.mark.parametrize("kind", [SliceStandardise, ImageNetBGR, UnitRange])
def test_a_layer_can_be_made_again_from_its_config(kind: type[keras.layers.Layer]) -> None:
    again = keras.layers.deserialize(keras.layers.serialize(kind(name="front")))
    assert type(again) is kind
    assert (again.name, again.compute_dtype) == ("front", "float32")
