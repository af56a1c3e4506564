from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from engine.bundle import record_parity
from engine.cascade import Cascade, OperatingPoint, Scores
from engine.parity import (
    CPU_LIMITS,
    ENOUGH_MASKS,
    FP16_LIMITS,
    Compared,
    Overlap,
    ParityReport,
    Truth,
    compare,
    dice,
    standing,
)
from engine.runners import open_runner
from tests.tinybundle import make_tiny_bundle, tiny_slices

masks = npst.arrays(np.uint8, (6, 6), elements=st.integers(0, 1))


def square(side: int) -> npt.NDArray[np.uint8]:
    mask = np.zeros((256, 256), np.uint8)
    mask[:side, :side] = 1
    return mask


def scores(probabilities: list[float], sides: list[int]) -> Scores:
    """Slices whose mask is a square of that side; 0: no mask."""
    pixels = np.array([side * side for side in sides], np.int32)
    found = {i: square(side) for i, side in enumerate(sides) if side}
    return Scores(np.array(probabilities, np.float32), pixels > 0, pixels > 0, pixels, found)


def block(
    reference: Scores, other: Scores, truth: Truth | None = None, gate: float | None = None
) -> Compared:
    return Compared(np.ones(len(reference.has_mask), np.bool_), reference, other, truth, gate)


def same_masks(count: int, *, slices: int = 10_000) -> ParityReport:
    """A runner that draws as many masks as the reference, and the same ones."""
    same = scores([0.9, 0.1], [3, 0])
    return replace(
        compare([block(same, same)]),
        slices=slices,
        masks_reference=count,
        masks_other=count,
        masks_both=count,
        mask_dice=1.0 if count else None,
    )


@given(masks, masks)
def test_dice_is_symmetric_and_between_nothing_and_all(first: np.ndarray, second: np.ndarray) -> None:
    assert 0 <= dice(first, second) == dice(second, first) <= 1
    assert dice(first, first) == 1
    assert dice(first, second * 255) == dice(first, second)


@pytest.mark.parametrize(("one", "two", "expected"), [(0, 0, 1.0), (0, 2, 0.0), (2, 2, 1.0), (1, 3, 0.2)])
def test_dice_of_known_squares(one: int, two: int, expected: float) -> None:
    assert dice(square(one), square(two)) == pytest.approx(expected)


def test_a_volumes_dice_is_of_its_pixels_not_of_its_slices() -> None:
    overlap = Overlap()
    overlap.add(square(10), square(10))
    overlap.add(None, square(1))
    overlap.add(None, None)
    assert overlap.dice == pytest.approx(200 / 201)


def test_a_cascade_compared_with_itself_differs_in_nothing() -> None:
    same = scores([0.9, 0.1, 0.8], [10, 0, 5])
    report = compare([block(same, same, Truth(["a", "a", "b"], np.stack([square(9), square(0), square(5)])))])
    assert (report.probability_error_max, report.flips, report.mask_dice, report.dice_fall) == (0, 0, 1, 0)
    assert (report.slices, report.volumes, report.masks_both, report.non_finite) == (3, 2, 2, 0)
    assert report.holds(FP16_LIMITS)


def test_every_figure_is_what_a_hand_would_count() -> None:
    reference = scores([0.9, 0.1, 0.75, 0.5], [3, 0, 2, 1])
    other = scores([0.9, 0.35, 0.5, 0.5], [1, 2, 2, 0])
    truth = Truth(["a", "a", "b", "c"], np.stack([square(3), square(0), square(2), square(0)]))
    report = compare([block(reference, other, truth)])
    assert report.probability_error_max == pytest.approx(0.25)
    assert report.probability_error_mean == pytest.approx(0.125)
    assert (report.flips, report.flip_fraction) == (2, 0.5)
    assert (report.masks_reference, report.masks_other, report.masks_both) == (3, 3, 2)
    assert report.mask_dice == pytest.approx((0.2 + 1) / 2)
    assert report.dice_reference == pytest.approx((1 + 1 + 0) / 3)
    assert report.dice_other == pytest.approx((2 * 1 / (5 + 9) + 1 + 1) / 3)
    assert report.dice_fall == pytest.approx(report.dice_reference - report.dice_other)


def test_a_volume_may_be_spread_over_blocks() -> None:
    reference, other = scores([0.9, 0.8, 0.1], [10, 4, 0]), scores([0.8, 0.8, 0.1], [9, 5, 0])
    truth = Truth(["a", "b", "a"], np.stack([square(8), square(4), square(2)]))
    whole = compare([block(reference, other, truth)])
    parts = compare(
        block(
            scores([float(reference.tumor_probability[i])], [int(reference.mask_pixels[i] ** 0.5)]),
            scores([float(other.tumor_probability[i])], [int(other.mask_pixels[i] ** 0.5)]),
            Truth([truth.volumes[i]], truth.masks[i : i + 1]),
        )
        for i in range(3)
    )
    assert parts == whole


def test_slices_that_are_not_valid_count_for_nothing() -> None:
    reference, other = scores([0.9, np.nan], [3, 0]), scores([0.9, np.nan], [3, 7])
    truth = Truth(["a", "b"], np.stack([square(3), square(3)]))
    report = compare([Compared(np.array([True, False]), reference, other, truth)])
    assert (report.slices, report.volumes, report.non_finite, report.flips, report.masks_other) == (
        1,
        1,
        0,
        0,
        1,
    )


def test_a_probability_that_is_not_a_number_is_counted_and_never_holds() -> None:
    reference, other = scores([0.9, 0.5], [3, 2]), scores([0.9, np.nan], [3, 2])
    report = compare([block(reference, other)])
    assert (report.non_finite, report.probability_error_max) == (1, 0)
    assert not report.holds(CPU_LIMITS)


def test_what_was_not_measured_is_none() -> None:
    report = compare([block(scores([0.1], [0]), scores([0.2], [0]))])
    assert (report.mask_dice, report.dice_fall, report.volumes) == (None, None, 0)
    assert report.holds(CPU_LIMITS)


def test_no_slices_prove_nothing() -> None:
    assert not compare([]).holds(CPU_LIMITS)


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({"flips": 5}, True),
        ({"flips": 6}, False),
        ({"mask_dice": 0.98}, True),
        ({"mask_dice": 0.979}, False),
        ({"dice_reference": 0.8, "dice_other": 0.7985}, True),
        ({"dice_reference": 0.8, "dice_other": 0.7975}, False),
        ({"dice_reference": 0.8, "dice_other": 0.9}, True),
    ],
)
def test_the_cpu_limits_are_those_of_the_design(change: dict[str, float], holds: bool) -> None:
    same = scores([0.9] * 2, [3, 4])
    report = replace(compare([block(same, same)]), slices=1000)
    assert replace(report, **change).holds(CPU_LIMITS) is holds
    assert not replace(report, flips=3).holds(FP16_LIMITS)


def test_each_broken_limit_is_named_with_what_was_found() -> None:
    good = same_masks(100, slices=1000)
    assert good.broken(FP16_LIMITS) == ()
    bad = replace(
        good, non_finite=2, flips=31, masks_both=7, mask_dice=0.9876, dice_reference=0.8, dice_other=0.79
    )
    assert bad.broken(FP16_LIMITS) == (
        "2 probabilities are no numbers (none may be)",
        "has_mask flips on 3.10% of slices (at most 0.20%)",
        "both draw 7 of 100 masks (at least 8)",
        "mask Dice is 0.9876 (at least 0.99)",
        "Dice against truth falls by 0.01000 (at most 0.001)",
    )
    assert compare([]).broken(CPU_LIMITS) == ("no slices were compared",)


@pytest.mark.parametrize(
    ("masks", "stands"),
    [(0, "weakly proven"), (ENOUGH_MASKS - 1, "weakly proven"), (ENOUGH_MASKS, "proven")],
)
def test_what_holds_on_few_masks_is_weakly_proven(masks: int, stands: str) -> None:
    assert standing(same_masks(masks), CPU_LIMITS) == stands


@pytest.mark.parametrize(("reference", "both"), [(10, 0), (10, 7), (3, 2), (1, 0)])
def test_a_runner_that_loses_masks_fails_though_few_slices_flip(reference: int, both: int) -> None:
    report = replace(same_masks(both), masks_reference=reference, flips=reference - both, slices=1_000_000)
    assert report.flip_fraction < FP16_LIMITS.flip_fraction
    assert standing(report, FP16_LIMITS) == "failed"


def test_many_masks_of_which_a_few_flip_are_proven() -> None:
    report = replace(same_masks(147, slices=634), masks_reference=148, flips=1)
    assert standing(report, CPU_LIMITS) == "proven"


def test_slices_whose_truth_is_unknown_count_in_all_but_dice_against_truth() -> None:
    reference, other = scores([0.9, 0.8], [3, 4]), scores([0.9, 0.8], [3, 2])
    report = compare([block(reference, other, Truth([None, "a"], np.stack([square(0), square(4)])))])
    assert (report.slices, report.masks_both, report.volumes) == (2, 2, 1)
    assert (report.dice_reference, report.dice_other) == (1, pytest.approx(2 * 4 / (4 + 16)))


def test_the_gates_decision_is_judged_though_every_slice_was_segmented() -> None:
    reference = scores([0.9, 0.2, 0.2, 0.7], [3, 3, 2, 0])
    other = scores([0.4, 0.2, 0.2, 0.2], [3, 3, 0, 0])
    truth = Truth(["a", "b", "c", "d"], np.stack([square(3), square(0), square(0), square(0)]))
    report = compare([block(reference, other, truth, gate=0.5)])
    assert (report.masks_reference, report.masks_other, report.masks_both) == (3, 2, 2)
    # The first passes one gate only, the third's masks differ; the last passes one gate, but has no mask.
    assert report.flips == 2
    # Behind the gate the second's false mask is gone, and the first's true one is lost.
    assert (report.dice_reference, report.dice_other) == (1, pytest.approx(3 / 4))


def test_a_probability_equal_to_the_gates_threshold_passes_it() -> None:
    same = scores([float(np.float32(0.7))], [3])
    truth = Truth(["a"], np.stack([square(3)]))
    assert compare([block(same, same, truth, gate=0.7)]).dice_other == 1


def test_a_real_comparison_goes_into_the_bundle_with_its_verdict(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path)
    images, point = tiny_slices(5), OperatingPoint.of(bundle)
    valid = np.ones(5, np.bool_)
    found = []
    for backend in ("onnxruntime", "openvino"):
        with (
            open_runner(backend, bundle, "classifier") as classifier,
            open_runner(backend, bundle, "segmenter") as segmenter,
        ):
            found.append(Cascade(classifier, segmenter, point).score(images, valid))
    truth = Truth(["a", "a", "a", "b", "b"], (images[..., 1] > 150).astype(np.uint8))
    report = compare([Compared(valid, found[0], found[1], truth)])
    record = record_parity(bundle, "openvino:fp32", report.record(CPU_LIMITS)).manifest.parity[
        "openvino:fp32"
    ]
    assert (record["holds"], record["standing"]) == (True, "weakly proven")
    assert record["masks_both"] == 3
    assert record == json.loads(json.dumps(report.record(CPU_LIMITS)))
    assert isinstance(record["dice_other"], float)
    assert record["dice_other"] > 0.9
