"""Whether a peer computes the same: its masks beside ONNX Runtime's in float32. If not, it is no peer."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from engine.parity import CPU_LIMITS, Limits

FP32_LIMITS = Limits(dice_fall=0.0, flip_fraction=0.0, mask_dice=0.999)
"""Of float32: another order of sums may move a pixel at a mask's edge, and nothing else."""

Masks = dict[str, npt.NDArray[np.bool_] | None]
"""By file: the mask, or None for a slice without one."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of `slices` slices, `flips` have a mask in one only; `dice` is the mean over those that have two."""

    slices: int
    flips: int
    both: int
    dice: float

    def broken(self, precision: str) -> str:
        """What is too far off, "" when nothing is. In lower precisions one flip is always allowed."""
        limits = FP32_LIMITS if precision == "fp32" else CPU_LIMITS
        allowed = 0 if precision == "fp32" else max(1, int(limits.flip_fraction * self.slices))
        if self.flips > allowed:
            return f"has_mask differs on {self.flips} of {self.slices} slices"
        if self.both and self.dice < limits.mask_dice:
            return f"its masks overlap by {self.dice:.4f} only"
        return ""


def read_masks(out: Path) -> Masks:
    """The masks that a program left, by image_path."""
    masks: Masks = {}
    with (out / "results.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            masks[row["image_path"]] = None if row["has_mask"] == "0" else _mask(out / row["mask_path"])
    return masks


def compare(reference: Masks, found: Masks) -> Agreement:
    """Raises ValueError when the files are not the same."""
    if reference.keys() != found.keys():
        raise ValueError(f"{len(found)} slices were scored, {len(reference)} were given")
    flips = sum((reference[path] is None) != (found[path] is None) for path in reference)
    dices = list(_dices(reference, found))
    return Agreement(len(reference), flips, len(dices), float(np.mean(dices)) if dices else 1.0)


def _dices(reference: Masks, found: Masks) -> Iterator[float]:
    for path, mask in reference.items():
        other = found[path]
        if mask is not None and other is not None:
            yield float(2 * (mask & other).sum() / (mask.sum() + other.sum()))


def _mask(path: Path) -> npt.NDArray[np.bool_]:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise OSError(f"{path}: no such mask")
    return np.asarray(image > 0)
