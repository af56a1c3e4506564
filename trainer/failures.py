"""Where Dice is lost: what the volumes would gain if a kind of slices, or an institution, had no errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from trainer.measure import COUNTS, SMALL, tumour_kinds
from trainer.metrics import Booleans, Bootstrap, Floats, Integers, overlaps

LABELS: Mapping[str, str] = {
    "all": "all slices",
    "small_lesion": f"lesion on less than {SMALL:.1%} of the slice",
    "edge_slice": "first or last tumour slice of its volume",
    "one_missing": "tumour slices with one sequence missing",
    "both_missing": "tumour slices with FLAIR alone",
    "plain_slice": "tumour slices that are none of these",
    "gated": "tumour slices that ended at the gate",
    "unmarked": "tumour slices that passed, without a mask",
    "false_mask": "slices without a tumour, with a mask",
}
"""Groups in the order in which they are told; institutions follow as "at NAME"."""


@dataclass(frozen=True, slots=True)
class Errors:
    """The pixels of n slices beside those of their volumes.

    `owners` are the slices' patients, counted from 0; `tp`, `fp` and `fn` are [n].
    """

    owners: Integers
    tp: Integers
    fp: Integers
    fn: Integers

    @classmethod
    def of(cls, slices: pd.DataFrame) -> Errors:
        """Of a table with patient_id and the pixels of each slice; patients are counted as they come."""
        owners, _ = pd.factorize(slices["patient_id"])
        return cls(owners.astype(np.int64), *(slices[name].to_numpy(np.int64) for name in ("tp", "fp", "fn")))

    def dice_without(self, group: Booleans) -> Floats:
        """[patients]: Dice of each volume, had the slices of the group been marked as they are true."""
        return _dice(
            self._pooled(self.tp + group * self.fn),
            self._pooled(self.fp * ~group),
            self._pooled(self.fn * ~group),
        )

    def lost_by_slice(self) -> Floats:
        """[n]: what the Dice of its volume would gain, had this slice alone been marked as it is true."""
        tp, fp, fn = (self._pooled(pixels)[self.owners] for pixels in (self.tp, self.fp, self.fn))
        mended: Floats = _dice(tp + self.fn, fp - self.fp, fn - self.fn) - _dice(tp, fp, fn)
        return mended

    def _pooled(self, pixels: Integers) -> Integers:
        return np.bincount(self.owners, weights=pixels).astype(np.int64)


def failure_groups(slices: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """One row a group that has slices: group, slices, patients, dice, missed, lost, lost_low, lost_high.

    `slices` has the columns of `trainer.measure.KEPT`. `dice` is the mean over the group's tumour slices,
    `missed` their share without a mask; both are NaN where it has none. `lost` is what the mean Dice per
    volume, over all volumes, would gain if the group's slices were marked as they are true, `lost_low` and
    `lost_high` its 95% interval. Groups overlap, so that what they lose does not add up.
    """
    slices = slices.reset_index(drop=True)
    errors = Errors.of(slices)
    nothing = np.zeros(len(slices), np.bool_)
    now = errors.dice_without(nothing)
    bootstrap = Bootstrap.of(len(now), seed, resamples)
    sick = slices["mask"].to_numpy() == 1
    dice = overlaps(*(slices[name].to_numpy(np.int64) for name in COUNTS))["dice"]
    unmarked = slices["has_mask"].to_numpy() != 1
    rows = []
    for name, group in groups_of(slices).items():
        if not group.any():
            continue
        lost = bootstrap.average(errors.dice_without(group) - now, np.arange(len(now)), "volume")
        low, high = lost.interval or (None, None)
        tumours = group & sick
        rows.append(
            {
                "group": name,
                "slices": int(group.sum()),
                "patients": len(np.unique(errors.owners[group])),
                "dice": float(dice[tumours].mean()) if tumours.any() else np.nan,
                "missed": float(unmarked[tumours].mean()) if tumours.any() else np.nan,
                "lost": lost.mean,
                "lost_low": low,
                "lost_high": high,
            }
        )
    return pd.DataFrame(rows)


def groups_of(slices: pd.DataFrame) -> dict[str, Booleans]:
    """The rows of each group, by its name in LABELS or as "at CS" for an institution."""
    sick = slices["mask"].to_numpy() == 1
    marked = slices["has_mask"].to_numpy() == 1
    missing = slices["missing"].to_numpy()
    kinds = tumour_kinds(slices)
    stopped = sick & (slices["passed"].to_numpy(np.float64) == 0)  # NaN, where there was no gate, is not 0
    institution = slices["institution"].to_numpy(str)
    return {
        "all": np.ones(len(slices), np.bool_),
        "small_lesion": kinds["small_lesion"],
        "edge_slice": kinds["edge_slice"],
        "one_missing": sick & (missing == 1),
        "both_missing": sick & (missing == 2),
        "plain_slice": kinds["plain_slice"],
        "gated": stopped,
        "unmarked": sick & ~stopped & ~marked,
        "false_mask": ~sick & marked,
        **{f"at {name}": institution == name for name in sorted(set(institution.tolist()) - {""})},
    }


def _dice(tp: Integers, fp: Integers, fn: Integers) -> Floats:
    return overlaps(tp, fp, fn, np.zeros_like(tp))["dice"]
