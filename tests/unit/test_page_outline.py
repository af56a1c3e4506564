"""Outlines: a path around a mask is the mask again when it is filled."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.page.outline import outline


def filled(path: str, height: int, width: int) -> npt.NDArray[np.bool_]:
    """What a browser fills: every upright edge turns all pixels to its right over."""
    inside = np.zeros((height, width), np.bool_)
    x = y = start_x = start_y = 0
    for letter, numbers in re.findall(r"([Mhvz])(-?\d+(?: -?\d+)?)?", path):
        to_x, to_y = x, y
        if letter == "M":
            start_x, start_y = x, y = tuple(int(number) for number in numbers.split())
            continue
        if letter == "h":
            to_x += int(numbers)
        elif letter == "v":
            to_y += int(numbers)
        else:
            to_x, to_y = start_x, start_y
        assert (x == to_x) != (y == to_y), "edges are straight, and none is empty"
        if x == to_x:
            inside[min(y, to_y) : max(y, to_y), x:] ^= True
        x, y = to_x, to_y
    return inside


def mask_of(text: str) -> npt.NDArray[np.bool_]:
    return np.array([[sign == "#" for sign in row] for row in text.split()])


masks = st.integers(1, 7).flatmap(
    lambda height: st.integers(1, 7).flatmap(
        lambda width: st.lists(st.booleans(), min_size=height * width, max_size=height * width).map(
            lambda cells: np.array(cells).reshape(height, width)
        )
    )
)


@given(masks)
def test_an_outline_that_is_filled_is_the_mask(mask: npt.NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(filled(outline(mask), *mask.shape), mask)


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("...", 0),
        ("#", 1),
        ("###", 1),
        ("### #.# ###", 2),  # with a hole
        ("#. .#", 2),  # that touch at a corner are kept apart
        (".# #.", 2),
        ("##. #.# .##", 2),
    ],
)
def test_an_outline_has_a_loop_for_each_border(text: str, loops: int) -> None:
    path = outline(mask_of(text))
    assert path.count("M") == path.count("z") == loops


def test_an_outline_goes_straight_as_far_as_it_can() -> None:
    assert outline(mask_of(".... .##. .##. ....")) == "M1 1h2v2h-2z"
