"""More slices than a page holds: what is shown of them, and what is said of it."""

from __future__ import annotations

from engine.page.results import Slice
from engine.page.sample import choose
from engine.page.truth import Judged


def run_of(count: int, *, volumes: int = 10) -> list[Slice]:
    """Every tenth slice has a mask."""
    per = count // volumes
    return [Slice(f"v{n // per}", f"v{n // per}/{n}.tif", 0, 0.5, has_mask=n % 10 == 0) for n in range(count)]


def judged(slices: list[Slice], missed: set[int], poor: set[int]) -> list[Judged | None]:
    return [
        Judged(
            b"", n in missed or each.has_mask, each.has_mask, (1, 9, 9) if n in poor else (9, 0, 0)
        )
        for n, each in enumerate(slices)
    ]  # fmt: skip


def unknown(slices: list[Slice]) -> list[Judged | None]:
    return [None] * len(slices)


def test_all_slices_are_shown_where_there_is_room_and_nothing_is_said() -> None:
    slices = run_of(50)
    sample = choose(slices, unknown(slices), 50, 0)
    assert list(sample.chosen) == list(range(50))
    assert sample.said == ""


def test_every_finding_is_shown_and_the_rest_are_whole_volumes() -> None:
    slices = run_of(1000)
    sample = choose(slices, unknown(slices), 330, 0)
    assert len(sample.chosen) == 330
    assert list(sample.chosen) == sorted(set(sample.chosen))
    assert set(range(0, 1000, 10)) <= set(sample.chosen)
    shown = [sum(slices[i].volume == f"v{v}" for i in sample.chosen) for v in range(10)]
    assert sorted(shown) == [10] * 7 + [60, 100, 100]  # two whole volumes, and a part of a third
    assert sample.said == (
        "330 of 1,000 slices are shown: all 100 findings, 230 others of volumes drawn at random (seed 0)."
    )


def test_errors_come_before_findings() -> None:
    slices = run_of(1000)
    missed, poor = set(range(5, 105, 10)), {500, 510}
    sample = choose(slices, judged(slices, missed, poor), 50, 0)
    assert missed | poor <= set(sample.chosen)
    assert sample.said == (
        "50 of 1,000 slices are shown: all 12 errors, 38 of 98 findings without an error (seed 0)."
    )


def test_too_many_errors_are_sampled_too() -> None:
    slices = run_of(1000)
    sample = choose(slices, judged(slices, set(range(1, 1000, 2)), set()), 20, 0)
    assert len(sample.chosen) == 20
    assert all(i % 2 for i in sample.chosen)
    assert sample.said.startswith("20 of 1,000 slices are shown: 20 of 500 errors")


def test_the_same_seed_draws_the_same_slices_and_another_others() -> None:
    slices = run_of(1000)
    drawn = [choose(slices, unknown(slices), 40, seed).chosen for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]
