from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("keras", reason="needs the train extra")

from trainer.failures import Errors, failure_groups, groups_of
from trainer.measure import KEPT, PATHS, measure
from trainer.pictures import PREDICTED_COLOUR, TRUE_COLOUR
from trainer.sheets import CAPTION, COLUMNS, MOST_OF_ONE, TILE, sheet, with_losses, worst, write_sheets
from trainer.study_commands import failures_command
from trainer.tables import markdown_failures

PIXELS = 65536
A, B = "TCGA_CS_1_1", "TCGA_DU_2_1"


def row(patient: str, found: int, shared: int, truth: int, **others: object) -> dict[str, object]:
    """A slice whose mask has `found` pixels, its truth `truth`, and both `shared`."""
    return {
        "image_path": f"{patient}/x.tif",
        "patient_id": patient,
        "institution": patient.split("_")[1],
        "mask": int(truth > 0),
        "tumor_probability": 0.5,
        "has_mask": int(found > 0),
        "quarantined": False,
        "passed": 1.0,
        "missing": 0,
        "ungated_tp": np.nan,
        "ungated_fp": np.nan,
        "tp": shared,
        "fp": found - shared,
        "fn": truth - shared,
        "tn": PIXELS - found - truth + shared,
        **others,
    }


@pytest.fixture
def slices() -> pd.DataFrame:
    """Patient A's edges are perfect and its middle half found; B ends at the gate, and has a false mask."""
    return pd.DataFrame(
        [
            row(A, 400, 400, 400),
            row(A, 500, 500, 1000, missing=1),
            row(A, 600, 600, 600),
            row(B, 0, 0, 100, passed=0.0, missing=2),
            row(B, 300, 0, 0),
            row(B, 0, 0, 1000),
        ]
    )


def groups(slices: pd.DataFrame) -> pd.DataFrame:
    return failure_groups(slices, resamples=50).set_index("group")


def test_what_all_slices_lose_is_what_the_mean_lacks_of_one(slices: pd.DataFrame) -> None:
    dice_a, dice_b = 2 * 1500 / (1500 + 2000), 0.0
    assert groups(slices).loc["all", "lost"] == pytest.approx(1 - (dice_a + dice_b) / 2)


def test_what_a_group_loses_is_the_mean_without_its_errors_less_the_mean(slices: pd.DataFrame) -> None:
    found = groups(slices)
    assert found.loc["one_missing", "lost"] == pytest.approx((1 - 3000 / 3500) / 2)
    assert found.loc["both_missing", "lost"] == pytest.approx(2 * 100 / (2 * 100 + 1000 + 300) / 2)
    assert (
        found.loc["gated", "lost"] == found.loc["both_missing", "lost"] == found.loc["small_lesion", "lost"]
    )
    assert found.loc["unmarked", "lost"] == pytest.approx(2 * 1000 / (2 * 1000 + 100 + 300) / 2)
    assert found.loc["false_mask", "lost"] == 0  # nothing of B is found, with or without the false pixels
    assert found.loc["at CS", "lost"] == pytest.approx((1 - 3000 / 3500) / 2)
    assert found.loc["at DU", "lost"] == pytest.approx(1 / 2)


def test_groups_are_counted(slices: pd.DataFrame) -> None:
    found = groups(slices)
    assert found["slices"].to_dict() == {
        "all": 6, "small_lesion": 1, "edge_slice": 4, "one_missing": 1, "both_missing": 1, "gated": 1,
        "unmarked": 1, "false_mask": 1, "at CS": 3, "at DU": 3,
    }  # fmt: skip
    assert found["patients"].to_dict() | {"all": 2, "edge_slice": 2} == found["patients"].to_dict()
    assert found.loc["edge_slice", ["dice", "missed"]].tolist() == [0.5, 0.5]
    assert found.loc["false_mask", ["dice", "missed"]].isna().all()


def test_a_group_without_slices_has_no_row(slices: pd.DataFrame) -> None:
    assert "plain_slice" not in groups(slices).index
    assert "plain_slice" in groups(slices.assign(missing=0)).index


def test_without_a_gate_nothing_ended_at_it(slices: pd.DataFrame) -> None:
    found = groups_of(slices.assign(passed=np.nan))
    assert not found["gated"].any()
    assert found["unmarked"].sum() == 2


def test_what_one_slice_loses_is_told_of_its_own_volume(slices: pd.DataFrame) -> None:
    lost = Errors.of(slices).lost_by_slice()
    assert lost.tolist() == pytest.approx([0, 1 - 3000 / 3500, 0, 200 / 1500, 0, 2000 / 2400])


def test_the_table_names_the_worst_volumes_and_groups_in_words(slices: pd.DataFrame) -> None:
    volumes = measure(slices, seed=0, resamples=1).volumes
    lines = markdown_failures(volumes, failure_groups(slices, resamples=50))
    assert lines[0] == (
        f"Of 2 volumes 1 are below Dice 0.5. The lowest: {B} 0.000 (of 2 tumour slices, with a mask 1 of 3), "
        f"{A} 0.857 (of 3 tumour slices, with a mask 3 of 3)."
    )
    assert lines[4].startswith("| all slices | 0.571 | ")
    assert any(line.startswith("| tumour slices with FLAIR alone | 0.067 |") for line in lines)
    assert {line.count("|") for line in lines if line.startswith("|")} == {8}


def test_one_patient_alone_has_no_interval(slices: pd.DataFrame) -> None:
    alone = slices[slices["patient_id"] == A]
    volumes = measure(alone, seed=0, resamples=1).volumes
    lines = markdown_failures(volumes, failure_groups(alone, resamples=50))
    assert "| at CS | 0.143 |  | 0.889 | 0.000 | 3 | 1 |" in lines


@pytest.fixture
def drawn(slices: pd.DataFrame, tmp_path: Path) -> pd.DataFrame:
    """The slices as files: the truth of each on top, the prediction below it."""
    rng = np.random.default_rng(0)
    for i in slices.index:
        assert cv2.imwrite(
            str(tmp_path / f"TCGA_{i}.png"), rng.integers(0, 256, (90, 60, 3)).astype(np.uint8)
        )
        for name, rows in (("mask", slice(10, 30)), ("found", slice(60, 80))):
            mask = np.zeros((90, 60), np.uint8)
            mask[rows, 20:40] = 255
            assert cv2.imwrite(str(tmp_path / f"{i}_{name}.png"), mask)
    found = slices["has_mask"] == 1
    return slices.assign(
        image_path=[f"{tmp_path}/TCGA_{i}.png" for i in slices.index],
        mask_path=[f"{tmp_path}/{i}_mask.png" for i in slices.index],
        predicted_path=[f"{tmp_path}/{i}_found.png" if found[i] else np.nan for i in slices.index],
    )


def test_a_sheet_shows_both_outlines_and_no_outline_of_an_empty_mask(drawn: pd.DataFrame) -> None:
    for row, predicted in ((1, True), (3, False)):
        picture = sheet(with_losses(drawn).iloc[[row]])
        assert picture.shape == (TILE + CAPTION, COLUMNS * TILE, 3)
        seen = set(map(tuple, picture.reshape(-1, 3).tolist()))
        assert TRUE_COLOUR in seen
        assert (PREDICTED_COLOUR in seen) == predicted
        assert picture[TILE:, :TILE].any()
        assert not picture[:, TILE:].any()


def test_sheets_are_written_for_each_group_that_loses_anything(drawn: pd.DataFrame, tmp_path: Path) -> None:
    written = write_sheets(drawn, tmp_path / "sheets", count=12)
    assert {path.stem for path in written} == {
        "all", "small_lesion", "edge_slice", "one_missing", "both_missing", "gated", "unmarked", "at_CS",
        "at_DU", "volumes",
    }  # fmt: skip
    picture = cv2.imread(str(tmp_path / "sheets" / "volumes.png"))
    assert picture is not None
    assert picture.shape == (2 * (TILE + CAPTION), COLUMNS * TILE, 3)


def test_the_worst_slices_come_first_and_no_patient_fills_a_sheet(slices: pd.DataFrame) -> None:
    many = with_losses(pd.concat([slices, *[slices.iloc[[5]]] * 9], ignore_index=True))
    chosen = worst(many, count=100)
    assert chosen["lost"].is_monotonic_decreasing
    assert chosen["patient_id"].value_counts().to_dict() == {B: MOST_OF_ONE, A: 1}
    assert len(worst(many, count=2)) == 2


def test_the_command_prints_the_table_and_draws(
    drawn: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn[[*KEPT, *PATHS]].to_csv(tmp_path / "slices.csv", index=False)
    failures_command([tmp_path], pictures=tmp_path / "sheets", count=6)
    said = capsys.readouterr()
    assert "| first or last tumour slice of its volume |" in said.out
    assert f"{tmp_path}/sheets/all.png" in said.err
