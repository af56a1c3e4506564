"""How slices of any size go into the square and their masks come back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sources.geometry import Placement, fit, place, restore_mask

sides = st.integers(1, 700)


def test_a_slice_of_the_models_size_is_copied_as_it_is() -> None:
    image = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    out = np.empty_like(image)
    fit(image, out)
    assert np.array_equal(out, image)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (256, 256, Placement(0, 0, 256, 256)),
        (512, 256, Placement(0, 64, 256, 128)),
        (100, 200, Placement(64, 0, 128, 256)),
        (1, 1, Placement(0, 0, 256, 256)),
        (1, 30_000, Placement(127, 0, 1, 256)),
        (30_000, 1, Placement(0, 127, 256, 1)),
    ],
)
def test_the_aspect_is_kept_and_the_slice_centred(height: int, width: int, expected: Placement) -> None:
    assert place(height, width) == expected


@given(sides, sides)
def test_a_placement_lies_in_the_square_and_touches_two_sides(height: int, width: int) -> None:
    box = place(height, width)
    assert min(box.height, box.width) >= 1
    assert max(box.height, box.width) == 256
    assert 0 <= box.top <= 256 - box.height
    assert 0 <= box.left <= 256 - box.width


@pytest.mark.parametrize("size", [(60, 200), (200, 60), (600, 300), (300, 601), (1, 900), (256, 255)])
def test_what_a_slice_does_not_fill_is_zero(size: tuple[int, int]) -> None:
    out = np.full((256, 256, 3), 77, np.uint8)
    fit(np.full((*size, 3), 200, np.uint8), out)
    box = place(*size)
    inside = out[box.top : box.top + box.height, box.left : box.left + box.width]
    assert (inside == 200).all()
    assert out.sum(dtype=np.int64) == inside.sum(dtype=np.int64)


def test_shrinking_averages_areas() -> None:
    checkers = np.indices((512, 512)).sum(axis=0) % 2 * 200
    out = np.empty((256, 256, 3), np.uint8)
    fit(np.repeat(checkers[:, :, np.newaxis], 3, axis=2).astype(np.uint8), out)
    assert (out == 100).all()


def test_a_view_that_is_not_contiguous_fits_too() -> None:
    wide = np.random.default_rng(2).integers(0, 256, (90, 120, 4), dtype=np.uint8)
    from_view, from_copy = np.empty((2, 256, 256, 3), np.uint8)
    fit(wide[:, :, :3], from_view)
    fit(wide[:, :, :3].copy(), from_copy)
    assert np.array_equal(from_view, from_copy)


@given(sides, sides)
@settings(max_examples=40, deadline=None)
def test_a_mask_comes_back_at_the_sources_size(height: int, width: int) -> None:
    box = place(height, width)
    mask = np.zeros((256, 256), np.uint8)
    mask[box.top : box.top + box.height, box.left : box.left + box.width] = 1
    restored = restore_mask(mask, height, width)
    assert restored.shape == (height, width)
    assert restored.dtype == np.uint8
    assert (restored == 1).all()


@pytest.mark.parametrize(("height", "width"), [(128, 128), (100, 60), (64, 512), (512, 512), (256, 256)])
def test_a_mask_lies_where_the_tumour_was(height: int, width: int) -> None:
    top, bottom, left, right = height // 4, height // 2, width // 3, 2 * width // 3
    source = np.zeros((height, width, 3), np.uint8)
    source[top:bottom, left:right] = 255
    out = np.empty((256, 256, 3), np.uint8)
    fit(source, out)
    restored = restore_mask((out[:, :, 0] > 127).astype(np.uint8), height, width)
    truth = source[:, :, 0] > 0
    overlap = np.count_nonzero(truth & (restored == 1))
    assert 2 * overlap / (np.count_nonzero(truth) + np.count_nonzero(restored)) > 0.93
