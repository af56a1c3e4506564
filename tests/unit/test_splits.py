from __future__ import annotations

import logging
from collections import Counter

import pandas as pd
import pytest

from engine.errors import UsageError
from trainer.dataset import institution_of, slice_keys
from trainer.splits import split_by_fold, split_by_patient, split_by_slice


def made_up_frame(patients: int = 40, slices: int = 10) -> pd.DataFrame:
    rows = []
    for p in range(patients):
        patient = f"TCGA_{('AA', 'BB', 'CC')[p % 3]}_{1000 + p}_19990101"
        for s in range(slices):
            path = f"set/{patient}/{patient}_{s}.tif"
            rows.append((path, path.replace(".tif", "_mask.tif"), int(s < 1 + p % 7), patient))
    return pd.DataFrame(rows, columns=["image_path", "mask_path", "mask", "patient_id"])


def test_a_patient_split_keeps_patients_whole_and_the_counts_exact() -> None:
    frame = made_up_frame()
    split = split_by_patient(frame, seed=3)
    parts = (split.train, split.validation, split.test)
    assert [len(part) for part in parts] == [28, 6, 6]
    assert {name for part in parts for name in part} == set(frame["patient_id"])
    assert len(split.select(frame, "test")) == 60


@pytest.mark.parametrize("seed", range(5))
def test_every_part_has_every_institution_and_both_loads(seed: int) -> None:
    frame = made_up_frame()
    split = split_by_patient(frame, seed)
    loads = frame.groupby("patient_id")["mask"].mean()
    large = loads[loads > loads.median()].index
    for part in (split.validation, split.test):
        assert {name.split("_")[1] for name in part} == {"AA", "BB", "CC"}
        assert 1 <= sum(name in large for name in part) <= 5


def test_the_seed_fixes_the_split_whatever_the_order_of_the_frame() -> None:
    frame = made_up_frame()
    assert split_by_patient(frame, 1) == split_by_patient(frame.sample(frac=1, random_state=0), 1)
    assert split_by_patient(frame, 1) != split_by_patient(frame, 2)


def test_three_patients_make_one_a_part_and_two_are_refused() -> None:
    split = split_by_patient(made_up_frame(patients=3), 0)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [1, 1, 1]
    with pytest.raises(UsageError, match="at least 3 patients, here are 2"):
        split_by_patient(made_up_frame(patients=2), 0)
    assert split_by_patient(made_up_frame(patients=2), 0, (0.5, 0.5, 0.0)).test == ()


def test_no_test_part_keeps_nobody_back() -> None:
    frame = made_up_frame()
    split = split_by_patient(frame, 0, (0.9, 0.1, 0.0))
    assert [len(part) for part in (split.train, split.validation, split.test)] == [36, 4, 0]


@pytest.mark.parametrize(("patients", "folds"), [(40, 5), (43, 5), (10, 10), (11, 2)])
def test_every_patient_is_in_exactly_one_test_fold_and_folds_are_of_a_size(patients: int, folds: int) -> None:
    frame = made_up_frame(patients)
    tests = [split_by_fold(frame, 7, folds, fold, 0.1).test for fold in range(1, folds + 1)]
    assert sorted(name for test in tests for name in test) == sorted(set(frame["patient_id"]))
    sizes = {len(test) for test in tests}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_nobody_is_in_two_parts_of_a_fold_and_nobody_is_left_out(fold: int) -> None:
    frame = made_up_frame()
    split = split_by_fold(frame, 0, 5, fold)
    parts = (*split.train, *split.validation, *split.test)
    assert sorted(parts) == sorted(set(frame["patient_id"]))
    assert [len(part) for part in (split.train, split.validation, split.test)] == [26, 6, 8]


@pytest.mark.parametrize("seed", range(5))
def test_folds_have_their_share_of_every_institution_and_load(seed: int) -> None:
    frame = made_up_frame(patients=60)
    loads = frame.groupby("patient_id")["mask"].mean()
    for fold in range(1, 6):
        split = split_by_fold(frame, seed, 5, fold)
        assert Counter(map(institution_of, split.test)) == {"AA": 4, "BB": 4, "CC": 4}
        assert set(map(institution_of, split.validation)) == {"AA", "BB", "CC"}
        assert loads[list(split.test)].mean() == pytest.approx(loads.mean(), abs=0.05)


def test_the_seed_fixes_the_folds_whatever_the_order_of_the_frame() -> None:
    frame = made_up_frame()
    shuffled = frame.sample(frac=1, random_state=0)
    assert split_by_fold(frame, 1, 5, 2) == split_by_fold(shuffled, 1, 5, 2)
    assert split_by_fold(frame, 1, 5, 2) != split_by_fold(frame, 2, 5, 2)


@pytest.mark.parametrize(
    ("folds", "fold", "validation", "said"),
    [
        (5, 0, 0.1, "--fold 0 of --folds 5"),
        (5, 6, 0.1, "--fold 6 of --folds 5"),
        (1, 1, 0.1, "two folds or more"),
        (11, 1, 0.1, "at least 11 patients, here are 10"),
        (5, 1, 0.8, "leaves 0 of 8 patients to train on"),
        (5, 1, 0.01, "and 0 to validate"),
    ],
)
def test_folds_that_cannot_be_are_refused(folds: int, fold: int, validation: float, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        split_by_fold(made_up_frame(patients=10), 0, folds, fold, validation)


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_fractions_that_are_none_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="add up to 1"):
        split_by_patient(made_up_frame(), 0, fractions)


def test_a_slice_split_warns_that_it_leaks(caplog: pytest.LogCaptureFixture) -> None:
    frame = made_up_frame()
    with caplog.at_level(logging.WARNING):
        split = split_by_slice(frame, seed=0)
    assert "leaks" in caplog.text
    assert [len(part) for part in (split.train, split.validation, split.test)] == [340, 30, 30]
    assert {*split.train, *split.validation, *split.test} == set(slice_keys(frame))
    assert slice_keys(split.select(frame, "test")) == list(split.test)
    assert split == split_by_slice(frame, seed=0)
