"""Overlap, ranking and rates of slices, each with its interval from patients drawn with replacement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

MISS_COST = 0.7  # of Tversky: what a missed pixel costs, a false one costs the rest (the article's loss)
PERCENTILES = (2.5, 97.5)
OVERLAPS = ("dice", "iou", "tversky", "sensitivity", "specificity")
CHUNK = 64  # resamples worked on at once where each needs a row as long as the slices


@dataclass(frozen=True, slots=True)
class Average:
    """A mean and a median over `n` units, and the mean's 95% interval; None where undefined."""

    unit: str
    n: int
    mean: float | None
    median: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of `n` units taken together (an AUC, a precision) and its 95% interval."""

    unit: str
    n: int
    value: float | None
    interval: tuple[float, float] | None


def overlaps(tp: Integers, fp: Integers, fn: Integers, tn: Integers) -> dict[str, Floats]:
    """Dice, IoU, Tversky, sensitivity and specificity from counts of pixels, each [n].

    The first three are 1 where prediction and truth are both empty; the last two are NaN where undefined.
    """
    empty = tp + fp + fn == 0

    def overlap(cost: Floats | Integers) -> Floats:
        return np.where(empty, 1.0, ratio(tp, tp + cost))

    return {
        "dice": overlap((fp + fn) / 2),
        "iou": overlap(fp + fn),
        "tversky": overlap(MISS_COST * fn + (1 - MISS_COST) * fp),
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
    }


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Patients drawn with replacement: weights [resamples, patients] say how often each was drawn."""

    weights: Floats

    @classmethod
    def of(cls, patients: int, seed: int, resamples: int) -> Bootstrap:
        """As many draws as there are patients, `resamples` times."""
        chances = np.full(patients, 1 / patients)
        draws = np.random.default_rng(seed).multinomial(patients, chances, size=resamples)
        return cls(draws.astype(np.float64))

    def average(self, values: Floats, owners: Integers, unit: str) -> Average:
        """Mean and median of `values` [n], those that are not NaN; owners [n] are their patients' numbers."""
        known = np.isfinite(values)
        values, owners = values[known], owners[known]
        if values.size == 0:
            return Average(unit, 0, None, None, None)
        means = ratio(
            self.weights @ self.by_patient(owners, values),
            self.weights @ self.by_patient(owners, np.ones(len(values))),
        )
        return Average(
            unit, len(values), float(values.mean()), float(np.median(values)), self.interval(means)
        )

    def by_patient(self, owners: Integers, values: Floats | Booleans) -> Floats:
        """The sum of `values` [n] for each patient."""
        return np.bincount(owners, weights=values, minlength=self.weights.shape[1]).astype(np.float64)

    def interval(self, samples: Floats) -> tuple[float, float] | None:
        """The middle 95% of the samples that are defined; None with fewer than two patients."""
        defined = samples[np.isfinite(samples)]
        if self.weights.shape[1] < 2 or defined.size == 0:
            return None
        low, high = np.percentile(defined, PERCENTILES)
        return float(low), float(high)


def confusions(sick: Booleans, called: Booleans, owners: Integers, bootstrap: Bootstrap) -> Floats:
    """[patients, 4]: tn, fp, fn, tp slices of every patient."""
    cells = (~sick & ~called, ~sick & called, sick & ~called, sick & called)
    return np.stack([bootstrap.by_patient(owners, cell) for cell in cells], axis=1)


def rates(table: Floats, bootstrap: Bootstrap) -> dict[str, Average | Figure]:
    """Sensitivity to F1 from a confusion [patients, 4]."""
    n = int(table.sum())
    values = _rates_of(table.sum(axis=0)[None])
    samples = _rates_of(bootstrap.weights @ table)
    return {
        name: Figure("slice", n, number(values[name][0]), bootstrap.interval(samples[name]))
        for name in values
    }


def ranking(
    sick: Booleans, scores: Floats, owners: Integers, bootstrap: Bootstrap
) -> dict[str, Average | Figure]:
    """AUC and average precision of scores [n]; undefined where all slices are of one kind."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    n = len(sick)
    if sick.all() or not sick.any():
        return {name: Figure("slice", n, None, None) for name in ("auc", "average_precision")}
    auc, precision = float(roc_auc_score(sick, scores)), float(average_precision_score(sick, scores))
    aucs = resampled_auc(sick, scores, owners, bootstrap)
    precisions = resampled_precision(sick, scores, owners, bootstrap)
    return {
        "auc": Figure("slice", n, auc, bootstrap.interval(aucs)),
        "average_precision": Figure("slice", n, precision, bootstrap.interval(precisions)),
    }


def resampled_auc(sick: Booleans, scores: Floats, owners: Integers, bootstrap: Bootstrap) -> Floats:
    """[resamples], from wins[p, q]: how often a tumour slice of patient p outscores a clear one of q."""
    patients = bootstrap.weights.shape[1]
    wins = np.zeros((patients, patients))
    for q in range(patients):
        clear = np.sort(scores[~sick & (owners == q)])
        below = np.searchsorted(clear, scores[sick], "left")
        below_or_tied = np.searchsorted(clear, scores[sick], "right")
        wins[:, q] = bootstrap.by_patient(owners[sick], (below + below_or_tied) / 2)
    weights = bootstrap.weights
    tumours, clears = bootstrap.by_patient(owners, sick), bootstrap.by_patient(owners, ~sick)
    return ratio(((weights @ wins) * weights).sum(axis=1), (weights @ tumours) * (weights @ clears))


def resampled_precision(sick: Booleans, scores: Floats, owners: Integers, bootstrap: Bootstrap) -> Floats:
    """[resamples] of average precision: precision at each distinct score, weighted by the recall it adds."""
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    samples = []
    for start in range(0, len(bootstrap.weights), CHUNK):
        weights = bootstrap.weights[start : start + CHUNK, owners[order]]
        found = np.cumsum(weights * sick[order], axis=1)[:, last_of_ties]
        precision = ratio(found, np.cumsum(weights, axis=1)[:, last_of_ties])
        added = np.diff(found, axis=1, prepend=0.0)
        samples.append(ratio(np.nansum(precision * added, axis=1), found[:, -1]))
    return np.concatenate(samples)


def _rates_of(confusions: Floats) -> dict[str, Floats]:
    tn, fp, fn, tp = confusions.T
    return {
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "precision": ratio(tp, tp + fp),
        "accuracy": ratio(tp + tn, tp + tn + fp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
    }


def ratio(part: Floats | Integers, whole: Floats | Integers) -> Floats:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def number(value: float) -> float | None:
    """None in place of a NaN, as JSON has none."""
    return float(value) if np.isfinite(value) else None
