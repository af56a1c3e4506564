"""What a gate costs and spares: Dice lost, tumour slices kept, slices passed, over every threshold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from trainer.metrics import Booleans, Bootstrap, Floats, Integers, number, overlaps, ratio

SHOWN = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""The thresholds that a bundle and its card list."""
DRAWN = tuple(round(step / 100, 2) for step in range(100))
"""The thresholds that a curve is drawn through."""


@dataclass(frozen=True, slots=True)
class Ungated:
    """What the cascade gives n slices where every one passes.

    `probability` is compared with a gate as it is (float32 with a float32, as the engine does, or six digits
    with six); `owners` are the slices' patients, counted from 0; `shared`, `found` and `truth` the pixels
    that mask and truth share, those of the mask (0 for one too small to count) and those of the truth.
    """

    probability: npt.NDArray[np.floating]
    sick: Booleans
    owners: Integers
    shared: Integers
    found: Integers
    truth: Integers

    def passed(self, gate: float) -> Booleans:
        """[n]: whether a slice passes."""
        return np.asarray(self.probability >= self.probability.dtype.type(gate))

    def dice(self, gate: float) -> Floats:
        """[patients], of each volume behind the gate."""
        passed = self.passed(gate)
        patients = int(self.owners.max()) + 1

        def pooled(pixels: Integers) -> Integers:
            return np.bincount(self.owners, weights=pixels, minlength=patients).astype(np.int64)

        shared, found, truth = pooled(self.shared * passed), pooled(self.found * passed), pooled(self.truth)
        return overlaps(shared, found - shared, truth - shared, np.zeros_like(truth))["dice"]


def trade_off(slices: Ungated, gates: Iterable[float], bootstrap: Bootstrap) -> pd.DataFrame:
    """One row a gate: gate, passed, sensitivity, dice, dice_lost.

    `passed` is the share of all slices, `sensitivity` that of the tumour slices, `dice` the mean over volumes
    and `dice_lost` what the gate costs of it; the columns _low and _high are the 95% intervals of
    sensitivity and of Dice lost.
    """
    free = slices.dice(gate=0.0)
    each = np.arange(len(free))
    sick = bootstrap.by_patient(slices.owners, slices.sick)
    rows = []
    for gate in sorted(set(gates)):
        passed = slices.passed(gate)
        kept = bootstrap.by_patient(slices.owners, passed & slices.sick)
        sensitivity = bootstrap.interval(ratio(bootstrap.weights @ kept, bootstrap.weights @ sick))
        dice = slices.dice(gate)
        lost = bootstrap.average(free - dice, each, "volume")
        low, high = sensitivity or (None, None)
        lost_low, lost_high = lost.interval or (None, None)
        rows.append(
            {
                "gate": gate,
                "passed": float(passed.mean()),
                "sensitivity": number(ratio(kept.sum(keepdims=True), sick.sum(keepdims=True))[0]),
                "sensitivity_low": low,
                "sensitivity_high": high,
                "dice": float(dice.mean()),
                "dice_lost": lost.mean,
                "dice_lost_low": lost_low,
                "dice_lost_high": lost_high,
            }
        )
    return pd.DataFrame(rows)
