"""Where the cascade works: the thresholds that the validation patients choose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.bundle import Operating
from engine.runners.base import Runner
from trainer.gates import SHOWN, Ungated, trade_off
from trainer.loader import SliceBatches
from trainer.metrics import Bootstrap

MASK_THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(2, 9))
"""Probabilities tried for a pixel."""
MIN_PIXELS = (1, 8, 16, 32, 64, 128)
"""Smallest masks tried, in pixels of the 256x256 that the models see; the data's tenth percentile is 315."""
GATE_STEPS = 10_000
"""Gates are tried in steps of 1/10,000."""
DICE_LOSS = 0.005
"""Of mean per-volume Dice, the most that the gate may cost."""
SENSITIVITY = 0.97
"""Share of the validation patients' tumour slices that the gate keeps; docs/model-quality.md says why."""
MOST_PASSED = 0.5
"""Where more slices pass, it is said: the tumour slices come first."""
RESAMPLES = 2000

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

    def behind(self, index: int, min_pixels: int) -> Ungated:
        """The cascade with MASK_THRESHOLDS[index] and this many pixels at least, its gate still open."""
        counted = self.overlap[:, index, 1] >= min_pixels
        return Ungated(
            probability=self.probability,
            sick=self.truth_pixels > 0,
            owners=self.volumes,
            shared=self.overlap[:, index, 0] * counted,
            found=self.overlap[:, index, 1] * counted,
            truth=self.truth_pixels,
        )


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
    """The gate that keeps the tumour slices, then the masks of the best Dice behind it.

    1. The highest gate that keeps SENSITIVITY of the tumour slices: 0.95 is wanted of other patients, and the
       rest is the margin. The highest gate of a small Dice loss (rule 3 alone) would keep far fewer.
    2. Mask threshold and minimum pixels of the best mean per-volume Dice behind that gate. Ties go to the
       threshold nearest 0.5 and to fewer pixels.
    3. Where the gate costs more than DICE_LOSS of that Dice, the highest lower one that does not.

    Where there is no tumour slice, nothing bounds the gate in 1.
    """
    sensitive = _sensitive_gate(answers)
    candidates = [
        (
            float(answers.behind(index, pixels).dice(sensitive).mean()),
            -abs(threshold - 0.5), -pixels, index, pixels,
        )
        for index, threshold in enumerate(MASK_THRESHOLDS)
        for pixels in MIN_PIXELS
    ]  # fmt: skip
    *_, index, pixels = max(candidates)
    masks = answers.behind(index, pixels)
    ungated = float(masks.dice(0.0).mean())
    gate = next(
        gate
        for gate in reversed(_gates(answers))
        if gate <= sensitive and masks.dice(gate).mean() >= ungated - DICE_LOSS
    )
    operating = Operating(
        gate_threshold=gate, mask_threshold=MASK_THRESHOLDS[index], min_pixels=pixels, chosen="so far"
    )
    return operating.model_copy(update={"chosen": _how(answers, operating, lowered=gate < sensitive)})


def gate_table(answers: Answers, operating: Operating) -> pd.DataFrame:
    """The `trade_off` of the gates SHOWN and the chosen one, with the chosen masks."""
    masks = answers.behind(MASK_THRESHOLDS.index(operating.mask_threshold), operating.min_pixels)
    bootstrap = Bootstrap.of(int(answers.volumes.max()) + 1, seed=0, resamples=RESAMPLES)
    return trade_off(masks, (*SHOWN, operating.gate_threshold), bootstrap)


def _sensitive_gate(answers: Answers) -> float:
    """The highest gate that lets SENSITIVITY of the tumour slices pass."""
    tumours = answers.probability[answers.truth_pixels > 0]
    return next(
        gate
        for gate in reversed(_gates(answers))
        if np.count_nonzero(tumours >= np.float32(gate)) >= SENSITIVITY * len(tumours)
    )


def _gates(answers: Answers) -> list[float]:
    steps = answers.probability.astype(np.float64) * GATE_STEPS
    # Rounded down as well: rounded up, the gate would shut out the very slice that it was made of.
    found: list[float] = (
        np.unique(np.concatenate([[0.0], np.floor(steps), np.round(steps)])) / GATE_STEPS
    ).tolist()
    return found


def _how(answers: Answers, operating: Operating, lowered: bool) -> str:
    rows = {row["gate"]: row for row in gate_table(answers, operating).to_dict("records")}
    chosen, ungated = rows[operating.gate_threshold], rows[0.0]
    text = (
        f"on {len(set(answers.volumes.tolist()))} validation patients ({len(answers.volumes)} slices): the "
        f"highest gate that keeps {SENSITIVITY:.0%} of the tumour slices, then mask threshold and minimum "
        "pixels of the best mean per-volume Dice behind it"
    )
    if lowered:
        text += f", then a lower gate, as that one cost more than {DICE_LOSS} of it"
    sensitivity = chosen["sensitivity"]
    kept = "" if pd.isna(sensitivity) else f"{sensitivity:.1%} of the tumour slices and "
    text += (
        f" ({kept}{chosen['passed']:.1%} of all slices pass; Dice {chosen['dice']:.4f}, "
        f"without a gate {ungated['dice']:.4f})"
    )
    if chosen["passed"] > MOST_PASSED:
        text += f"; more than {MOST_PASSED:.0%} of the slices pass, so the gate saves little"
    return text


def _batches(frame: pd.DataFrame) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
    batches = SliceBatches(frame, target="mask", batch_size=32)
    for index in range(len(batches)):
        images, masks = batches[index]
        yield images.astype(np.uint8, copy=False), masks[..., 0] > 0
