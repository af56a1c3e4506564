"""One window for a volume: what its planes give together, however they are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine.sources.volumes import Window
from engine.sources.windows import WINDOW_PERCENTILES, Tally, apply, window


def of(*planes: npt.NDArray[Any], slope: float = 1.0, intercept: float = 0.0) -> Window | None:
    tally = Tally()
    for plane in planes:
        tally.add(plane, slope, intercept)
    return tally.window()


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.int8, np.uint16, np.int16]),
        arrays.array_shapes(min_dims=3, max_dims=3, max_side=6),
    ),
    st.sampled_from([(1.0, 0.0), (2.5, 0.0), (0.5, -100.0)]),
)
def test_it_is_that_of_all_voxels_but_zero(volume: npt.NDArray[Any], scale: tuple[float, float]) -> None:
    slope, intercept = scale
    values = volume * slope + intercept
    counted = values[values != 0]
    found = of(*volume, slope=slope, intercept=intercept)
    if counted.size == 0:
        assert found is None
        return
    assert found is not None
    assert [found.low, found.high] == pytest.approx(np.percentile(counted, WINDOW_PERCENTILES))


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int32, np.float32, np.dtype(">i2")])
def test_order_and_type_of_the_planes_do_not_change_it(kind: Any) -> None:
    planes = np.random.default_rng(1).integers(0, 300, (6, 9, 8)).astype(kind)
    assert of(*planes) == of(*planes[::-1])
    assert of(*planes) == pytest.approx(of(*planes.astype(np.float64)), abs=1e-9) or kind is np.float32


def test_planes_with_scales_of_their_own_are_counted_in_one_unit() -> None:
    planes = np.random.default_rng(2).integers(1, 300, (2, 9, 8)).astype(np.int16)
    tally = Tally()
    tally.add(planes[0], 2.0, 5.0)
    tally.add(planes[1].astype(np.float32))
    found = tally.window()
    assert found is not None
    together = np.concatenate([planes[0].ravel() * 2.0 + 5.0, planes[1].ravel()])
    assert [found.low, found.high] == pytest.approx(np.percentile(together, WINDOW_PERCENTILES))


def test_a_volume_of_one_plane_is_shown_as_a_picture_that_stands_alone() -> None:
    plane = np.random.default_rng(3).integers(-500, 3000, (40, 30)).astype(np.int16)
    found = of(plane)
    assert found is not None
    assert np.array_equal(apply(found, plane), window(plane))


def test_numbers_that_are_none_count_for_nothing() -> None:
    plane = np.array([[np.nan, np.inf, -np.inf, 0.0, 1.0, 3.0]])
    assert of(plane) == of(np.array([[1.0, 3.0]]))


def test_a_window_of_one_value_is_a_threshold() -> None:
    assert apply(Window(5.0, 5.0), np.array([[4, 5, 6]])).tolist() == [[0, 255, 255]]


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_few_different_values_are_told(kind: Any) -> None:
    tally = Tally()
    tally.add(np.arange(9).reshape(3, 3).astype(kind))
    assert tally.distinct(8)
    assert not tally.distinct(9)
