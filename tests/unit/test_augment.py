from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from trainer.augment import AUGMENTATIONS, Augmentation

U8 = npt.NDArray[np.uint8]

STILL = {"flip": 0.0, "rotation": 0.0, "scale": 0.0, "shift": 0.0, "elastic": 0.0}
UNSHADED = {"gain": 0.0, "offset": 0.0, "bias_field": 0.0, "drop_channel": 0.0, "gamma": 1.0}


@pytest.fixture
def slice_and_mask() -> tuple[U8, U8]:
    """A grey head on black, [256,256,3], and a lesion off its centre, which is the brightest part."""
    image = np.zeros((256, 256, 3), np.uint8)
    cv2.ellipse(image, (128, 128), (80, 100), 0, 0, 360, (90, 60, 80), -1)
    mask = np.zeros((256, 256), np.uint8)
    cv2.circle(mask, (150, 100), 22, 1, -1)
    image[mask == 1] = 255
    return image, mask


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def overlap(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_the_same_generator_gives_the_same_slice(slice_and_mask: tuple[U8, U8]) -> None:
    first, again, other = (Augmentation()(*slice_and_mask, rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("seed", range(12))
def test_mask_and_image_move_together_and_the_mask_stays_0_or_1(
    slice_and_mask: tuple[U8, U8], seed: int
) -> None:
    image, mask = Augmentation(**UNSHADED, elastic=3.0)(*slice_and_mask, rng(seed))
    assert image.shape == (256, 256, 3)
    assert mask.shape == (256, 256)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert overlap(image[..., 0] > 172, mask == 1) > 0.96


def test_what_was_given_is_left_as_it_is(slice_and_mask: tuple[U8, U8]) -> None:
    before = [array.copy() for array in slice_and_mask]
    Augmentation(drop_channel=1.0)(*slice_and_mask, rng())
    for array, copy in zip(slice_and_mask, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_nothing_is_changed_where_nothing_is_allowed(slice_and_mask: tuple[U8, U8]) -> None:
    image, mask = Augmentation(**STILL, **UNSHADED)(*slice_and_mask, rng())
    np.testing.assert_array_equal(image, slice_and_mask[0])
    np.testing.assert_array_equal(mask, slice_and_mask[1])


def test_a_flip_is_a_mirror_from_left_to_right(slice_and_mask: tuple[U8, U8]) -> None:
    image, mask = Augmentation(**{**STILL, "flip": 1.0}, **UNSHADED)(*slice_and_mask, rng())
    np.testing.assert_array_equal(image, slice_and_mask[0][:, ::-1])
    np.testing.assert_array_equal(mask, slice_and_mask[1][:, ::-1])


def test_the_lesion_moves_no_further_than_allowed(slice_and_mask: tuple[U8, U8]) -> None:
    moving = Augmentation(**{**STILL, "shift": 0.05}, **UNSHADED)
    for seed in range(8):
        _, mask = moving(*slice_and_mask, rng(seed))
        rows, columns = np.nonzero(mask)
        assert abs(rows.mean() - 100) <= 0.05 * 256 + 0.5
        assert abs(columns.mean() - 150) <= 0.05 * 256 + 0.5


def test_elastic_bends_a_straight_edge_smoothly(slice_and_mask: tuple[U8, U8]) -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, :128] = 200
    bent, _ = Augmentation(**{**STILL, "elastic": 4.0}, **UNSHADED)(image, slice_and_mask[1], rng(3))
    inside = bent[25:-25, 64:192, 0] > 100  # black comes in from beyond the slice's own edges
    edge = 64 + inside.sum(axis=1).astype(int)
    assert edge.std() > 1
    assert np.abs(edge - 128).max() < 25
    assert np.abs(np.diff(edge)).max() <= 2


def test_the_size_changes_no_further_than_allowed(slice_and_mask: tuple[U8, U8]) -> None:
    sizes = [
        Augmentation(**{**STILL, "scale": 0.2}, **UNSHADED)(*slice_and_mask, rng(seed))[1].sum()
        for seed in range(12)
    ]
    relative = np.sqrt(np.array(sizes) / slice_and_mask[1].sum())
    assert 0.78 < relative.min() < 0.95
    assert 1.05 < relative.max() < 1.22


def test_gamma_moves_the_middle_and_leaves_black_and_white() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    for seed in range(6):
        image, _ = Augmentation(**STILL, **{**UNSHADED, "gamma": 2.0})(ramp, ramp[..., 0] * 0, rng(seed))
        for channel in range(3):
            curve = image[0, :, channel].astype(int)
            assert (curve[0], curve[255]) == (0, 255)
            assert (np.diff(curve) >= 0).all()
            assert 63 <= curve[128] <= 182


def test_full_is_stronger_than_light_and_none_is_nothing() -> None:
    light, full = AUGMENTATIONS["light"], AUGMENTATIONS["full"]
    assert AUGMENTATIONS["none"] is None
    assert light is not None
    assert full is not None
    assert light.elastic == 0 < full.elastic
    assert full.rotation > light.rotation


def test_the_black_ground_stays_black(slice_and_mask: tuple[U8, U8]) -> None:
    ground = slice_and_mask[0] == 0
    for seed in range(4):
        image, _ = Augmentation(**STILL)(*slice_and_mask, rng(seed))
        assert not image[ground].any()


def test_bright_pixels_saturate_and_do_not_wrap(slice_and_mask: tuple[U8, U8]) -> None:
    lesion = slice_and_mask[1] == 1
    for seed in range(8):
        image, _ = Augmentation(**STILL, drop_channel=0.0)(*slice_and_mask, rng(seed))
        assert image[lesion].min() > 120


def test_a_dropped_channel_becomes_flair(slice_and_mask: tuple[U8, U8]) -> None:
    dropping = Augmentation(**STILL, **{**UNSHADED, "drop_channel": 1.0})
    dropped = set()
    for seed in range(8):
        image, _ = dropping(*slice_and_mask, rng(seed))
        np.testing.assert_array_equal(image[..., 1], slice_and_mask[0][..., 1])
        same = [channel for channel in (0, 2) if np.array_equal(image[..., channel], image[..., 1])]
        assert len(same) == 1
        dropped.update(same)
    assert dropped == {0, 2}
