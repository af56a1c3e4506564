"""The page's charts: bars hold every slice once, inside their frame, at readable ticks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.page.charts import Chart, probabilities, sizes


def assert_inside(chart: Chart) -> None:
    for bar in chart.bars:
        assert chart.left - 0.1 <= bar.x < bar.x + bar.width <= chart.right + 0.1
        assert bar.height > 0
        assert chart.top - 0.1 <= bar.y < bar.y + bar.height <= chart.height


def test_a_slice_of_probability_1_is_in_the_last_bin_and_one_of_0_in_the_first() -> None:
    chart = probabilities([1.0], [0.0], 0.5)
    assert [(bar.kind, bar.low, bar.high) for bar in chart.bars] == [
        ("without", "0", "0.025"),
        ("with", "0.975", "1"),
    ]


@given(st.lists(st.floats(0, 1)), st.lists(st.floats(0, 1)))
def test_probabilities_are_counted_once_and_drawn_inside(marked: list[float], others: list[float]) -> None:
    chart = probabilities(marked, others, None)
    counts = {kind: sum(bar.count for bar in chart.bars if bar.kind == kind) for kind in ("with", "without")}
    assert counts == {"with": len(marked), "without": len(others)}
    assert_inside(chart)


@given(st.lists(st.integers(1, 5_000_000), min_size=1))
def test_sizes_are_counted_once_and_drawn_inside(pixels: list[int]) -> None:
    chart = sizes(pixels)
    assert chart is not None
    assert sum(bar.count for bar in chart.bars) == len(pixels)
    assert_inside(chart)


def test_a_bin_of_sizes_reaches_to_twice_its_beginning() -> None:
    chart = sizes([4, 7, 8])
    assert chart is not None
    assert [(bar.low, bar.high, bar.count) for bar in chart.bars] == [("4", "7", 2), ("8", "15", 1)]


def test_there_is_no_chart_of_sizes_without_a_finding() -> None:
    assert sizes([]) is None


@pytest.mark.parametrize("count", [1, 2, 30, 2_500, 1_000_000])
def test_ticks_of_any_count_keep_their_distance(count: int) -> None:
    for chart in (probabilities([0.99], [0.01] * count, 0.5), sizes([100] * min(count, 3_000))):
        assert chart is not None
        places = sorted(tick.at for tick in chart.up)
        assert all(after - before >= 15 for before, after in itertools.pairwise(places))


def test_the_gate_stands_where_its_probability_does() -> None:
    chart = probabilities([0.9], [0.1], 0.5)
    assert chart.gate is not None
    assert chart.gate.at == pytest.approx((chart.left + chart.right) / 2)
    assert chart.gate.text == "gate 0.5"
