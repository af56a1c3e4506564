from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("keras", reason="needs the train extra")

from trainer.dataset import load_frame
from trainer.gates import SHOWN
from trainer.operating import (
    ARTICLE_POINT,
    DICE_LOSS,
    MASK_THRESHOLDS,
    SENSITIVITY,
    Answers,
    ask,
    choose,
    gate_table,
)

Counts = tuple[int, int]
Slice = tuple[int, float, int, Counts]


def answers(slices: Sequence[Slice], others: dict[float, Sequence[Counts]] | None = None) -> Answers:
    """Answers from (volume, probability, true pixels, (shared, found)) of each slice, at every threshold.

    `others` gives (shared, found) of every slice at thresholds that differ.
    """
    overlap = np.zeros((len(slices), len(MASK_THRESHOLDS), 2), np.int64)
    for index, threshold in enumerate(MASK_THRESHOLDS):
        counts = (others or {}).get(threshold, [counts for *_, counts in slices])
        overlap[:, index] = np.array(counts)
    return Answers(
        volumes=np.array([volume for volume, *_ in slices], np.int64),
        probability=np.array([probability for _, probability, *_ in slices], np.float32),
        overlap=overlap,
        truth_pixels=np.array([true for _, _, true, _ in slices], np.int64),
    )


def mean_dice(given: Answers, gate: float, index: int, min_pixels: int) -> float:
    """Per volume, counted once more and plainly."""
    dices = []
    for volume in sorted(set(given.volumes.tolist())):
        shared = found = true = 0
        for i in np.flatnonzero(given.volumes == volume):
            true += int(given.truth_pixels[i])
            if given.probability[i] >= np.float32(gate) and given.overlap[i, index, 1] >= min_pixels:
                shared += int(given.overlap[i, index, 0])
                found += int(given.overlap[i, index, 1])
        dices.append(2 * shared / (found + true) if found + true else 1.0)
    return float(np.mean(dices))


def patients(count: int, slices: int, probability: float, first: int = 0) -> list[Slice]:
    """Tumour slices of 100 pixels, found whole."""
    return [(first + i, probability, 100, (100, 100)) for i in range(count) for _ in range(slices)]


def test_a_tumour_slice_in_a_hundred_may_be_shut_out() -> None:
    given = [*patients(10, 10, 0.9), (0, 0.3, 1, (1, 1)), (0, 0.1, 0, (0, 0))]
    assert choose(answers(given)).gate_threshold == pytest.approx(0.9)


def test_three_tumour_slices_in_a_hundred_and_no_more_may_be_shut_out() -> None:
    lost = [(i, 0.3, 1, (1, 1)) for i in range(4)]
    given = [*patients(10, 10, 0.9), *lost, (0, 0.1, 0, (0, 0))]
    assert choose(answers(given)).gate_threshold == pytest.approx(0.3)
    assert choose(answers([*given[:103], given[-1]])).gate_threshold == pytest.approx(0.9)


def test_a_gate_that_costs_too_much_dice_is_lowered_and_said() -> None:
    # One slice of 221 holds most of a volume: its loss is 0.05 of mean Dice.
    given = [*patients(20, 11, 0.9), (0, 0.2, 9000, (9000, 9000)), (0, 0.1, 0, (0, 0))]
    chosen = choose(answers(given))
    assert chosen.gate_threshold == pytest.approx(0.2)
    assert f"more than {DICE_LOSS}" in chosen.chosen


def test_slices_without_any_tumour_shut_the_gate_above_them() -> None:
    chosen = choose(answers([(0, 0.3, 0, (0, 0)), (1, 0.4, 0, (0, 0))]))
    assert chosen.gate_threshold == pytest.approx(0.4)
    assert "tumour slices and" not in chosen.chosen


def test_the_gate_keeps_the_slice_it_was_made_of_though_rounded() -> None:
    dear = [(0, 0.9, 1000, (1000, 1000)), (0, 0.30006, 40, (40, 40)), (1, 0.95, 500, (500, 500))]
    assert choose(answers(dear)).gate_threshold == pytest.approx(0.3)


def test_everything_passes_where_the_least_sure_slice_is_needed() -> None:
    needed = [(0, 0.00001, 900, (900, 900)), (1, 0.9, 500, (500, 500))]
    assert choose(answers(needed)).gate_threshold == 0.0


def test_the_mask_threshold_is_that_of_the_best_dice() -> None:
    slices = [(0, 0.9, 100, (60, 60)), (1, 0.9, 200, (120, 120))]
    chosen = choose(answers(slices, {0.7: [(90, 100), (190, 200)]}))
    assert chosen.mask_threshold == 0.7


def test_ties_go_to_one_half_and_to_one_pixel() -> None:
    chosen = choose(answers([(0, 0.9, 100, (60, 60)), (1, 0.9, 200, (120, 120))]))
    assert (chosen.mask_threshold, chosen.min_pixels) == (0.5, 1)


def test_minimum_pixels_rise_where_small_masks_are_false() -> None:
    # One volume without tumour: its Dice is 0 with the false mask of 20 pixels and 1 without it.
    chosen = choose(answers([(0, 0.9, 500, (480, 500)), (1, 0.9, 0, (0, 20))]))
    assert chosen.min_pixels == 32


def test_masks_are_chosen_behind_the_gate() -> None:
    # The false mask of 20 pixels is shut out, so no minimum has to rise for it.
    chosen = choose(answers([(0, 0.9, 500, (480, 500)), (1, 0.9, 80, (80, 80)), (2, 0.01, 0, (0, 20))]))
    assert chosen.min_pixels == 1


def random_slices(seed: int) -> Answers:
    rng = np.random.default_rng(seed)
    slices: list[Slice] = []
    for volume in range(5):
        for _ in range(12):
            true = int(rng.integers(50, 900)) if rng.random() < 0.5 else 0
            found = int(rng.integers(0, 900))
            probability = float(np.clip(rng.normal(0.75 if true else 0.25, 0.2), 0, 1))
            slices.append((volume, probability, true, (min(true, found) * 4 // 5, found)))
    return answers(slices)


@pytest.mark.parametrize("seed", range(4))
def test_no_higher_gate_keeps_both_promises(seed: int) -> None:
    given = random_slices(seed)
    chosen = choose(given)
    index = MASK_THRESHOLDS.index(chosen.mask_threshold)
    ungated = mean_dice(given, 0.0, index, chosen.min_pixels)
    tumours = given.probability[given.truth_pixels > 0]

    def keeps(gate: float) -> bool:
        kept = np.mean(tumours >= np.float32(gate))
        return (
            bool(kept >= SENSITIVITY)
            and mean_dice(given, gate, index, chosen.min_pixels) >= ungated - DICE_LOSS
        )

    assert keeps(chosen.gate_threshold)
    assert not any(
        keeps(gate) for gate in np.unique(given.probability) if gate > chosen.gate_threshold + 1e-3
    )


def test_the_table_of_gates_falls_from_all_slices_to_the_sure_ones() -> None:
    given = random_slices(5)
    chosen = choose(given)
    table = gate_table(given, chosen)
    assert set(table["gate"]) == {*SHOWN, chosen.gate_threshold}
    assert table["passed"].is_monotonic_decreasing
    assert table["sensitivity"].is_monotonic_decreasing
    first = table.iloc[0]
    assert (first["passed"], first["sensitivity"], first["dice_lost"]) == (1, 1, 0)
    assert (table["sensitivity_low"] <= table["sensitivity"]).all()
    index = MASK_THRESHOLDS.index(chosen.mask_threshold)
    for row in table.to_dict("records"):
        assert row["dice"] == pytest.approx(mean_dice(given, row["gate"], index, chosen.min_pixels))


def test_the_choice_says_how_it_was_made() -> None:
    chosen = choose(answers([(0, 0.9, 100, (100, 100)), (1, 0.8, 200, (200, 200))])).chosen
    assert "2 validation patients (2 slices)" in chosen
    assert "keeps 97% of the tumour slices" in chosen
    assert "more than 50% of the slices pass" in chosen


class Reds:
    """A runner whose answer stands in the red channel: as probability of each pixel, or of the slice."""

    name, version, precision, concurrency = "reds", "1", "fp32", 1
    outputs = ("tumor_probability", "mask_probability")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        return None

    def infer(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        red = images[..., 0]
        return {"mask_probability": red, "tumor_probability": red.max(axis=(1, 2)).astype(np.float32) / 255}


def test_pixels_are_counted_at_every_threshold(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("tree")
    for patient, levels in (("TCGA_A_1_1", (255, 102)), ("TCGA_A_2_1", (0,))):
        (root / patient).mkdir()
        for number, level in enumerate(levels):
            image, mask = np.zeros((256, 256, 3), np.uint8), np.zeros((256, 256), np.uint8)
            image[:10, :10, 0] = level
            mask[5:10, :20] = 255 if level else 0
            assert cv2.imwrite(str(root / patient / f"{number}.tif"), image[..., ::-1])
            assert cv2.imwrite(str(root / patient / f"{number}_mask.tif"), mask)
    given = ask(load_frame(root), Reds(), Reds())
    assert given.volumes.tolist() == [0, 0, 1]
    assert given.truth_pixels.tolist() == [100, 100, 0]
    np.testing.assert_allclose(given.probability, [1.0, 0.4, 0.0])
    at = {threshold: given.overlap[:, i].tolist() for i, threshold in enumerate(MASK_THRESHOLDS)}
    assert at[0.4] == [[50, 100], [50, 100], [0, 0]]  # 102 is 0.4 of 255
    assert at[0.5] == [[50, 100], [0, 0], [0, 0]]


def test_the_articles_point_is_its_argmax_and_its_rounded_pixel() -> None:
    assert (ARTICLE_POINT.gate_threshold, ARTICLE_POINT.mask_threshold, ARTICLE_POINT.min_pixels) == (
        0.5,
        0.5,
        1,
    )
