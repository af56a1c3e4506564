from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("keras", reason="needs the train extra")

from engine.errors import UsageError
from trainer.compare import Row, changes, compare, difference
from trainer.presets import PRESETS, Kind, Preset, with_settings
from trainer.runs import Request, config_of
from trainer.study_commands import compare_command

BASE = {"a": 0.9, "b": 0.6, "c": 0.3, "d": 0.8}
BETTER = {"a": 0.92, "b": 0.65, "c": 0.4, "d": 0.81}


def write_judged(folder: Path, dice: dict[str, float], flips: str = "none", **columns: object) -> Path:
    """What evaluate writes, as far as it is read."""
    folder.mkdir(parents=True)
    values = list(dice.values())
    volume = {"mean": float(np.mean(values)), "median": float(np.median(values)), "interval": [0.4, 0.9]}
    metrics = {
        "volume": {"dice": volume},
        "tumour_slice": {"dice": {"mean": 0.5}},
        "classifier": {"auc": {"value": None}},
    }
    content = {"format": 2, "inputs": {"flips": flips}, "metrics": metrics}
    (folder / "evaluation.json").write_text(json.dumps(content))
    table = {"patient_id": list(dice), "slices": 9, "tp": 5, "fn": 2, "dice": values, **columns}
    pd.DataFrame(table).to_csv(folder / "dice.csv", index=False)
    return folder


def write_run(
    folder: Path, preset: Preset, kind: Kind = "segmenter", cpu: float | None = 1800.0, **asked: Any
) -> Path:
    folder.mkdir(parents=True)
    request = Request(kind=kind, data=Path("data"), run=folder, preset=preset, **asked)
    (folder / "config.json").write_text(json.dumps(config_of(request, "float32")))
    (folder / "metrics.json").write_text(json.dumps({"epochs": 2} | ({} if cpu is None else {"steps": 1200})))
    history = pd.DataFrame({"epoch": [0, 1], "loss": [0.5, 0.4]})
    (history if cpu is None else history.assign(cpu_seconds=cpu)).to_csv(folder / "history.csv", index=False)
    return folder


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_a_difference_is_paired_by_patient() -> None:
    found = difference(pd.Series(BASE), pd.Series(BETTER).sample(frac=1, random_state=1))
    assert found.paired
    assert found.mean == pytest.approx(0.045)
    assert found.interval is not None
    low, high = found.interval
    # All gain, so every draw does; the two volumes' own spread, 0.6, is not in it.
    assert 0.01 <= low < found.mean < high <= 0.1


def test_the_difference_of_a_model_to_itself_is_nothing() -> None:
    found = difference(pd.Series(BASE), pd.Series(BASE))
    assert (found.mean, found.interval) == (0, (0, 0))


def test_other_patients_are_drawn_each_on_their_own() -> None:
    others = {f"{name}2": dice for name, dice in BETTER.items()}
    found = difference(pd.Series(BASE), pd.Series(others))
    assert not found.paired
    assert found.mean == pytest.approx(0.045)
    assert found.interval is not None
    assert found.interval[0] < 0 < found.interval[1]


def test_a_table_tells_changes_differences_and_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = PRESETS[("best", "segmenter")]
    write_judged(tmp_path / "one", BASE, dice_ungated=[0.9, 0.5, 0.3, 0.8])
    write_judged(tmp_path / "two", BETTER, dice_ungated=[0.9, 0.5, 0.3, 0.9])
    write_run(tmp_path / "seg1", best)
    write_run(tmp_path / "seg2", with_settings(best, {"loss": "focal-tversky", "augmentation.elastic": "0"}))
    write_run(tmp_path / "cls", PRESETS[("best", "classifier")], "classifier")
    compare_command(
        [f"best={tmp_path}/one,{tmp_path}/seg1,{tmp_path}/cls", f"{tmp_path}/two,{tmp_path}/seg2"]
    )
    heading, _, one, two = map(cells, capsys.readouterr().out.splitlines())
    assert len(heading) == len(one) == len(two) == 10
    assert one == ["best", "0.650 (0.700)", "0.400 to 0.900", "", "0.625", "", "0.500", "", "2,400", "2.00"]
    elastic = best.augmentation.elastic if best.augmentation else None
    assert two[0] == (
        f"two; segmenter augmentation.elastic 0 ({elastic:g}); segmenter loss focal-tversky (tversky+bce)"
    )
    assert two[3].startswith("+0.045 (0.0")
    assert two[5].startswith("+0.025 (0.000 to 0.")
    assert two[8:] == ["1,200", "1.00"]


def test_what_is_not_known_is_left_blank(tmp_path: Path) -> None:
    write_judged(tmp_path / "one", BASE)
    write_judged(tmp_path / "two", BASE, dice_ungated=0.5)
    run = write_run(tmp_path / "seg", PRESETS[("best", "segmenter")], cpu=None)
    lines = compare([Row.read(f"{tmp_path}/one"), Row.read(f"{tmp_path}/two,{run}")])
    assert cells(lines[2])[4:6] == ["", ""]
    assert cells(lines[3])[4:6] == ["0.500", ""]
    assert lines[3].endswith("|  |  |")


def test_flips_and_another_preset_are_told_as_changes(tmp_path: Path) -> None:
    one = write_judged(tmp_path / "one", BASE)
    two = write_judged(tmp_path / "two", BASE, flips="horizontal")
    runs = [write_run(tmp_path / name, PRESETS[(name, "segmenter")]) for name in ("article", "best")]  # type: ignore[index]
    rows = [Row.read(f"{folder},{run}") for folder, run in zip((one, two), runs, strict=True)]
    assert changes(*rows) == ["segmenter preset best (article)", "flips horizontal (none)"]
    assert changes(rows[0], rows[0]) == []


def test_another_seed_or_precision_is_a_change_and_another_folder_is_none(tmp_path: Path) -> None:
    one = write_judged(tmp_path / "one", BASE)
    best = PRESETS[("best", "segmenter")]
    first = write_run(tmp_path / "first", best, split=Path("a/split.json"))
    second = write_run(tmp_path / "second", best, split=Path("b/split.json"), seed=3)
    assert changes(Row.read(f"{one},{first}"), Row.read(f"{one},{second}")) == ["segmenter seed 3 (0)"]


def test_other_slices_of_the_same_patients_are_refused(tmp_path: Path) -> None:
    one = write_judged(tmp_path / "one", BASE)
    two = write_judged(tmp_path / "two", BASE, fn=[2, 2, 2, 3])
    with pytest.raises(UsageError, match="one and two were judged on other slices of the same patients"):
        compare([Row.read(str(one)), Row.read(str(two))])


def test_a_folder_that_is_no_evaluation_or_no_run_is_refused(tmp_path: Path) -> None:
    one = write_judged(tmp_path / "one", BASE)
    with pytest.raises(UsageError, match="holds no evaluation"):
        Row.read(str(tmp_path))
    with pytest.raises(UsageError, match="no finished run of `tumorscan train`"):
        Row.read(f"{one},{tmp_path}")
    (one / "dice.csv").unlink()
    with pytest.raises(UsageError, match=r"no readable dice\.csv"):
        Row.read(str(one))
