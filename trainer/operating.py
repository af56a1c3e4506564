"""Where the cascade works: the thresholds that the validation patients choose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.bundle import Operating
from engine.parity import Overlap
from engine.runners.base import Runner
from trainer.loader import SliceBatches

MASK_THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(2, 9))
"""Probabilities tried for a pixel."""
MIN_PIXELS = (1, 8, 16, 32, 64, 128)
"""Smallest masks tried, in pixels of the 256x256 that the models see; the data's tenth percentile is 315."""
GATE_STEPS = 10_000
"""Gates are tried in steps of 1/10,000."""
DICE_LOSS = 0.005
"""Of mean per-volume Dice, the most that the gate may cost."""


ARTICLE_POINT = Operating(
    gate_threshold=0.5,
    mask_threshold=0.5,
    min_pixels=1,
    chosen="as the article does: the larger of the two classes passes, any rounded pixel is a mask",
)
"""Where the cascade of two runs with --preset article works."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What both models say of n validation slices, and the truth.

    `overlap` `[n, thresholds, 2]` counts, for each of MASK_THRESHOLDS, the pixels that mask and truth share
    and those of the mask; `truth_pixels` `[n]` those of the truth.
    """

    volumes: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float32]
    overlap: npt.NDArray[np.int64]
    truth_pixels: npt.NDArray[np.int64]


def ask(frame: pd.DataFrame, classifier: Runner, segmenter: Runner) -> Answers:
    """Run both models, ungated, over a frame's slices; the segmenter must give `mask_probability`."""
    steps = [max(1, int(255 * threshold + 0.5)) for threshold in MASK_THRESHOLDS]
    probability, overlap, truth_pixels = [], [], []
    for images, masks in _batches(frame):
        probability.append(classifier.infer(images)["tumor_probability"])
        given = segmenter.infer(images)["mask_probability"]
        for answer, truth in zip(given, masks, strict=True):
            inside = [answer >= step for step in steps]
            overlap.append([(int((mask & truth).sum()), int(mask.sum())) for mask in inside])
            truth_pixels.append(int(truth.sum()))
    codes, _ = pd.factorize(frame["patient_id"])
    return Answers(
        codes.astype(np.int64),
        np.concatenate(probability),
        np.array(overlap, np.int64),
        np.array(truth_pixels),
    )


def choose(answers: Answers) -> Operating:
    """Mask threshold and minimum pixels of the best ungated Dice, then the highest gate that costs little.

    Dice is per volume, averaged over volumes. Ties go to the threshold nearest 0.5 and to fewer pixels.
    """
    candidates = [
        (_volume_dice(answers, index, pixels, gate=None), -abs(threshold - 0.5), -pixels, index, pixels)
        for index, threshold in enumerate(MASK_THRESHOLDS)
        for pixels in MIN_PIXELS
    ]
    best, _, _, index, pixels = max(candidates)
    steps = answers.probability.astype(np.float64) * GATE_STEPS
    # Rounded down as well: rounded up, the gate would shut out the very slice that it was made of.
    gates = np.unique(np.concatenate([[0.0], np.floor(steps), np.round(steps)])) / GATE_STEPS
    kept = [gate for gate in gates if _volume_dice(answers, index, pixels, gate=gate) >= best - DICE_LOSS]
    gate = float(max(kept))
    passed = float((answers.probability >= np.float32(gate)).mean())
    gated = _volume_dice(answers, index, pixels, gate=gate)
    return Operating(
        gate_threshold=gate,
        mask_threshold=MASK_THRESHOLDS[index],
        min_pixels=pixels,
        chosen=(
            f"on {len(set(answers.volumes.tolist()))} validation patients ({len(answers.volumes)} slices): "
            f"mask threshold and minimum pixels of the best mean per-volume Dice without a gate "
            f"({best:.4f}), then the highest gate that loses at most {DICE_LOSS} of it "
            f"({gated:.4f}, {passed:.1%} of slices pass)"
        ),
    )


def _volume_dice(answers: Answers, index: int, min_pixels: int, gate: float | None) -> float:
    shared, found = answers.overlap[:, index, 0], answers.overlap[:, index, 1]
    counts = found >= min_pixels
    if gate is not None:
        counts = counts & (answers.probability >= np.float32(gate))
    volumes = int(answers.volumes.max()) + 1
    dices = [
        Overlap(
            int(shared[counts & (answers.volumes == volume)].sum()),
            int(found[counts & (answers.volumes == volume)].sum()),
            int(answers.truth_pixels[answers.volumes == volume].sum()),
        ).dice
        for volume in range(volumes)
    ]
    return float(np.mean(dices))


def _batches(frame: pd.DataFrame) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
    batches = SliceBatches(frame, target="mask", batch_size=32)
    for index in range(len(batches)):
        images, masks = batches[index]
        yield images.astype(np.uint8, copy=False), masks[..., 0] > 0
