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
from trainer.operating import ARTICLE_POINT, DICE_LOSS, MASK_THRESHOLDS, Answers, ask, choose

Counts = tuple[int, int]


def answers(
    slices: Sequence[tuple[int, float, int, Counts]], others: dict[float, Sequence[Counts]] | None = None
) -> Answers:
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


def test_a_slice_that_costs_little_is_shut_out() -> None:
    # Without the 10 pixels of the second slice the volume falls to 2000/2010: by 0.0025 over two volumes.
    cheap = [(0, 0.9, 1000, (1000, 1000)), (0, 0.3, 10, (10, 10)), (1, 0.95, 500, (500, 500))]
    assert choose(answers(cheap)).gate_threshold == pytest.approx(0.9)


def test_a_slice_that_costs_more_sets_the_gate() -> None:
    dear = [(0, 0.9, 1000, (1000, 1000)), (0, 0.3, 40, (40, 40)), (1, 0.95, 500, (500, 500))]
    assert choose(answers(dear)).gate_threshold == pytest.approx(0.3)


def test_the_gate_keeps_the_slice_it_was_made_of_though_rounded() -> None:
    dear = [(0, 0.9, 1000, (1000, 1000)), (0, 0.30006, 40, (40, 40)), (1, 0.95, 500, (500, 500))]
    assert choose(answers(dear)).gate_threshold == pytest.approx(0.3)


def test_a_gate_that_removes_false_masks_may_rise_past_a_loss() -> None:
    # The false mask of the clear slice costs more than the tumour slice below it brings.
    mixed = [(0, 0.9, 1000, (1000, 1000)), (0, 0.2, 60, (60, 60)), (0, 0.5, 0, (0, 300))]
    chosen = choose(answers(mixed))
    assert chosen.gate_threshold == pytest.approx(0.9)


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


@pytest.mark.parametrize("seed", range(4))
def test_no_higher_gate_would_lose_at_most_the_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slices = []
    for volume in range(5):
        for _ in range(12):
            true = int(rng.integers(50, 900)) if rng.random() < 0.5 else 0
            found = int(rng.integers(0, 900))
            probability = float(np.clip(rng.normal(0.75 if true else 0.25, 0.2), 0, 1))
            slices.append((volume, probability, true, (min(true, found) * 4 // 5, found)))
    given = answers(slices)
    chosen = choose(given)
    index = MASK_THRESHOLDS.index(chosen.mask_threshold)
    ungated = mean_dice(given, 0.0, index, chosen.min_pixels)
    assert mean_dice(given, chosen.gate_threshold, index, chosen.min_pixels) >= ungated - DICE_LOSS
    higher = [gate for gate in np.unique(given.probability) if gate > chosen.gate_threshold + 1e-3]
    assert all(mean_dice(given, gate, index, chosen.min_pixels) < ungated - DICE_LOSS for gate in higher)


def test_the_choice_says_how_it_was_made() -> None:
    chosen = choose(answers([(0, 0.9, 100, (100, 100)), (1, 0.8, 200, (200, 200))])).chosen
    assert "2 validation patients (2 slices)" in chosen
    assert "at most 0.005" in chosen


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
