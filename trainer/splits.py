"""Who is trained on: splits by patient, by fold of patients, or by slice as the article does."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from engine.errors import UsageError
from trainer.dataset import Split, institution_of, natural_key, slice_keys

log = logging.getLogger(__name__)


def split_by_patient(
    frame: pd.DataFrame, seed: int, fractions: tuple[float, float, float] = (0.70, 0.15, 0.15)
) -> Split:
    """Whole patients to train, validation and test, each with its share of institutions and tumour loads.

    A patient's load is the fraction of its slices with tumour, large above the median of all patients.
    Patients stand in line by institution and load, shuffled within, and each goes to the part that lags
    furthest behind its fraction: every institution and load is shared out to within a patient or so, and the
    counts are exact. A fraction of 0 leaves its part empty.

    Raises UsageError for fractions that do not add up to 1 and for fewer patients than parts.
    """
    loads = _loads(frame)
    counts = _counts(len(loads), fractions, "patients")
    parts = _deal(_line(loads, np.random.default_rng(seed)), counts)
    train, validation, test = (tuple(sorted(part, key=natural_key)) for part in parts)
    return Split("patient", seed, train, validation, test)


def split_by_fold(frame: pd.DataFrame, seed: int, folds: int, fold: int, validation: float = 0.15) -> Split:
    """Fold `fold` of `folds` is the test part; the validation patients are drawn from the others.

    Patients stand in line by institution and, within, by load (the fraction of slices with tumour); of every
    `folds` neighbours in this line each goes to another fold, by chance. So the folds of one seed are alike,
    every patient is in exactly one of them, and they are the same whatever fold is asked for.

    Args:
        frame: of `load_frame`.
        seed: of the folds and of the validation part.
        folds: how many, 2 or more.
        fold: which is tested on, from 1.
        validation: the validation part, as a fraction of all patients.

    Raises:
        UsageError: no such fold, fewer patients than folds, or nobody left to train on.
    """
    loads = _loads(frame)
    if not 1 <= fold <= folds or folds < 2:
        raise UsageError(f"--fold {fold} of --folds {folds}: give two folds or more, and one of 1 to {folds}")
    if len(loads) < folds:
        raise UsageError(f"{folds} folds need at least {folds} patients, here are {len(loads)}")
    line = sorted(loads, key=lambda name: (institution_of(name), loads[name], natural_key(name)))
    rng = np.random.default_rng(seed)
    owner: dict[str, int] = {}
    for start in range(0, len(line), folds):
        block = line[start : start + folds]
        owner.update(zip(block, rng.permutation(folds).tolist(), strict=False))
    test = [name for name in line if owner[name] == fold - 1]
    rest = {name: load for name, load in loads.items() if owner[name] != fold - 1}

    wanted = round(validation * len(loads))
    if not 0 < wanted < len(rest):
        raise UsageError(
            f"a validation part of {validation:g} leaves {len(rest) - wanted} of {len(rest)} patients to "
            f"train on and {wanted} to validate: give another --validation-fraction"
        )
    rng = np.random.default_rng((seed, fold))
    train, chosen = _deal(_line(rest, rng), [len(rest) - wanted, wanted])
    parts = (tuple(sorted(part, key=natural_key)) for part in (train, chosen, test))
    return Split("patient", seed, *parts)


def split_by_slice(
    frame: pd.DataFrame, seed: int, fractions: tuple[float, float, float] = (0.85, 0.075, 0.075)
) -> Split:
    """The article's split: slices at random, whatever patient they come from.

    Neighbouring slices of a patient then stand on both sides, and metrics on its test part look far better
    than on new patients (Yagis 2021: by 29 to 55 points of accuracy); a warning says so.

    Raises UsageError for fractions that do not add up to 1 and for fewer slices than parts.
    """
    log.warning(
        "a random slice split leaks: neighbouring slices of a patient are in train and in test, "
        "and metrics on such a test part do not hold for new patients"
    )
    keys = slice_keys(frame)
    counts = _counts(len(keys), fractions, "slices")
    order = np.random.default_rng(seed).permutation(len(keys))
    ends = np.cumsum(counts)
    train, validation, test = (
        tuple(keys[i] for i in sorted(order[end - count : end]))
        for end, count in zip(ends, counts, strict=True)
    )
    return Split("slice", seed, train, validation, test)


def _loads(frame: pd.DataFrame) -> dict[str, float]:
    """The fraction of slices with tumour of each patient, in natural order of their names."""
    loads = frame.groupby("patient_id")["mask"].mean()
    return {name: float(loads[name]) for name in sorted(map(str, loads.index), key=natural_key)}


def _line(loads: dict[str, float], rng: np.random.Generator) -> list[str]:
    """Patients by institution, small loads before large ones, by chance within."""
    median = float(np.median(list(loads.values())))
    strata: dict[tuple[str, bool], list[str]] = {}
    for patient, load in loads.items():
        strata.setdefault((institution_of(patient), load > median), []).append(patient)
    institutions = sorted({institution for institution, _ in strata})
    line: list[str] = []
    for i in rng.permutation(len(institutions)):
        for large in (False, True):
            members = strata.get((institutions[i], large), [])
            line += [members[j] for j in rng.permutation(len(members))]
    return line


def _deal(line: Sequence[str], counts: Sequence[int]) -> tuple[list[str], ...]:
    """Each in line goes to the part that lags furthest behind its count."""
    parts: tuple[list[str], ...] = tuple([] for _ in counts)
    for position, patient in enumerate(line, start=1):
        lags = [
            count * position / len(line) - len(part) if len(part) < count else -np.inf
            for part, count in zip(parts, counts, strict=True)
        ]
        parts[int(np.argmax(lags))].append(patient)
    return parts


def _counts(total: int, fractions: Sequence[float], things: str) -> list[int]:
    """`total` shared out by `fractions`; every part with a fraction above 0 gets at least one."""
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(f"fractions of a split must be 0 or more and add up to 1, not {tuple(fractions)}")
    needed = sum(fraction > 0 for fraction in fractions)
    if total < needed:
        raise UsageError(f"a split into {needed} parts needs at least {needed} {things}, here are {total}")
    counts = [int(fraction * total + 1e-9) for fraction in fractions]
    remainders = [fraction * total - count for fraction, count in zip(fractions, counts, strict=True)]
    for i in sorted(range(len(counts)), key=lambda i: -remainders[i])[: total - sum(counts)]:
        counts[i] += 1
    for i, fraction in enumerate(fractions):
        if fraction > 0 and counts[i] == 0:
            counts[i], largest = 1, counts.index(max(counts))
            counts[largest] -= 1
    return counts
