from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("keras", reason="needs the train extra")

from engine.bundle import Operating, Training
from engine.errors import UsageError
from trainer.calibration import Temperature
from trainer.card import Card, Settings, write_card
from trainer.compare import Row
from trainer.dataset import Split
from trainer.evaluate import evaluate
from trainer.measure import measure
from trainer.study import POOL_FILE, CrossValidated, pool
from trainer.tables import manifest_metrics

SIDE = 10
PATIENTS = tuple(f"TCGA_{site}_{i}_1" for i, site in enumerate(("CS", "CS", "DU", "DU", "HT", "HT")))


def write_png(path: Path, pixels: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask.flat[:pixels] = 255
    assert cv2.imwrite(str(path), mask)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for patient in PATIENTS:
        for number, pixels in enumerate((30, 0, 20)):
            write_png(root / patient / f"{patient}_{number}_mask.tif", pixels)
            write_png(root / patient / f"{patient}_{number}.tif", 50)
    return root


def judged_fold(folder: Path, data: Path, number: int, part: str = "test", kind: str = "patient") -> Path:
    """Fold `number` of three: two patients scored, the second with a mask that is half its truth."""
    test = PATIENTS[2 * number : 2 * number + 2]
    split = folder / "split.json"
    rest = tuple(name for name in PATIENTS if name not in test)
    Split(kind, number, rest[:2], rest[2:], test).save(split)  # type: ignore[arg-type]
    for gated in (True, False):
        out = folder / ("gated" if gated else "ungated")
        lines = ["image_path,slice,status,tumor_probability,has_mask,mask_path"]
        for which, patient in enumerate(PATIENTS):
            for i, pixels in enumerate((30, 0, 20)):
                name = f"{patient}/{patient}_{i}.tif"
                probability = (0.9, 0.2, 0.4)[i]
                found = (pixels // (1 + which % 2)) if not gated or probability >= 0.3 + number / 10 else 0
                mask = f"masks/{name}_mask.png" if found else ""
                if found:
                    write_png(out / mask, found)
                lines.append(f"{data}/{name},0,ok,{probability},{int(found > 0)},{mask}")
        (out / "results.csv").write_text("\n".join(lines) + "\n")
        point = {"gate": gated, "gate_threshold": 0.3 + number / 10}
        (out / "run.json").write_text(json.dumps({"operating_point": point, "bundle": {"sha256": "ab" * 32}}))
    evaluate(folder / "gated", data, ungated=folder / "ungated", split=split, part=part).save(
        folder / "judged"
    )
    return folder / "judged"


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, data: Path) -> list[Path]:
    root = tmp_path_factory.mktemp("folds")
    for number in range(3):
        (root / f"f{number + 1}").mkdir()
    return [judged_fold(root / f"f{number + 1}", data, number) for number in range(3)]


def test_pooled_volumes_are_those_of_the_folds(folds: list[Path]) -> None:
    pooled = pool(folds)
    apart = pd.concat([pd.read_csv(folder / "dice.csv") for folder in folds], ignore_index=True)
    pd.testing.assert_frame_equal(pooled.measures.volumes, apart, check_dtype=False)
    assert (pooled.patients, pooled.of_patients, len(pooled.folds)) == (6, 6, 3)
    dice = pooled.measures.metrics["volume"]["dice"]
    assert dice.n == 6
    assert dice.interval is not None


def test_each_fold_keeps_its_own_gate(folds: list[Path]) -> None:
    pooled = pool(folds)
    assert [fold.gate for fold in pooled.folds] == pytest.approx([0.3, 0.4, 0.5])
    assert [fold.name for fold in pooled.folds] == ["f1/judged", "f2/judged", "f3/judged"]
    # 0.4 passes the gates of 0.3 and 0.4, not that of 0.5.
    assert pooled.measures.confusion["gate"] == {"tn": 6, "fp": 0, "fn": 2, "tp": 10}
    assert pooled.measures.operating is not None


def test_institutions_have_their_intervals(folds: list[Path]) -> None:
    found = pool(folds).measures.institutions
    assert list(found) == ["CS", "DU", "HT"]
    assert found["CS"]["volumes"] == 2
    assert found["CS"]["dice"] == pytest.approx((1 + 2 / 3) / 2)
    assert (found["CS"]["dice_low"], found["CS"]["dice_high"]) == pytest.approx((2 / 3, 1))


def test_a_gate_that_one_fold_lacked_is_measured_of_none(folds: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "fold"
    copy.mkdir()
    for path in folds[0].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    table = pd.read_csv(copy / "slices.csv")
    table.assign(passed=np.nan, ungated_tp=np.nan, ungated_fp=np.nan).to_csv(copy / "slices.csv", index=False)
    pooled = pool([copy, folds[1]])
    assert list(pooled.measures.confusion) == ["has_mask"]
    assert pooled.measures.operating is None
    assert pooled.patients == 4


def test_a_patient_that_two_folds_judged_is_refused(folds: list[Path]) -> None:
    with pytest.raises(UsageError, match=f"{PATIENTS[0]} was judged in"):
        pool([folds[0], folds[0]])


def test_a_fold_that_is_no_test_part_is_refused(tmp_path: Path, data: Path, folds: list[Path]) -> None:
    with pytest.raises(UsageError, match="not judged on the test part of a split by patient"):
        pool([judged_fold(tmp_path, data, 1, part="validation")])
    with pytest.raises(UsageError, match="holds no evaluation"):
        pool([folds[0], tmp_path / "nothing"])


def test_folds_of_other_flips_are_refused(folds: list[Path], tmp_path: Path) -> None:
    shutil.copytree(folds[0], tmp_path / "fold")
    content = json.loads((folds[0] / "evaluation.json").read_text())
    content["inputs"]["flips"] = "horizontal"
    (tmp_path / "fold" / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="scored with --flips horizontal and none"):
        pool([tmp_path / "fold", folds[1]])


def test_what_was_pooled_is_read_back(folds: list[Path], tmp_path: Path) -> None:
    pooled = pool(folds[:2])
    pooled.save(tmp_path)
    read = CrossValidated.load(tmp_path / POOL_FILE)
    assert read.folds == pooled.folds
    assert (read.patients, read.of_patients, read.slices) == (4, 6, 12)
    written = (tmp_path / "cross-validated.md").read_text()
    assert "\n".join([*read.markdown, "", *read.failures]) + "\n" == written
    assert "| at CS | " in written
    assert read.flips == "none"
    row = Row.read(f"all={tmp_path}")  # a pool stands beside another in a comparison
    assert (row.name, row.metrics["volume"]["dice"]["n"], len(row.volumes)) == ("all", 4, 4)
    metrics = manifest_metrics(read.metrics, "cross_validated")
    dice = pooled.measures.metrics["volume"]["dice"]
    kept = metrics["cross_validated.volume.dice"]
    assert (kept.value, kept.n, (kept.low, kept.high)) == (pytest.approx(0.8333, abs=1e-3), 4, dice.interval)
    assert "cross_validated.volume.dice.median" in metrics
    json.dumps(read.record())


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2}'])
def test_a_file_that_is_no_pool_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / POOL_FILE).write_text(content)
    with pytest.raises(UsageError, match="pool the folds again"):
        CrossValidated.load(tmp_path / POOL_FILE)
    with pytest.raises(UsageError, match="cannot read"):
        CrossValidated.load(tmp_path / "none.json")


def training(**changes: object) -> Training:
    return Training.model_validate(
        {
            "data": "drawn slices",
            "presets": {"classifier": "best", "segmenter": "best"},
            "data_terms": "non-commercial (CC BY-NC-SA 4.0)",
            "split": "patient",
            "parts": {"train": 4, "validation": 2, "test": 0},
            "extra": [],
            "classifier_weights": "none",
            "segmenter_slices": "0.25",
            **changes,
        }
    )


SETTINGS = Settings(Operating(gate_threshold=0.2, mask_threshold=0.5, min_pixels=1, chosen="on 2 patients"))


def test_a_card_without_any_numbers_says_so(tmp_path: Path) -> None:
    write_card(tmp_path / "card.md", Card("mine", training(), SETTINGS, None, None))
    text = (tmp_path / "card.md").read_text()
    assert "Not measured: no patient was kept back" in text
    assert "none kept back for a test" in text
    assert "all tumour slices and 0.25 of the others, drawn anew each epoch" in text
    assert "Not a medical device" in text
    assert "no commercial use of the weights" in text
    assert "tumor_probability was not calibrated." in text


def test_a_card_says_when_nobody_could_be_calibrated_on(tmp_path: Path) -> None:
    settings = Settings(SETTINGS.operating, Temperature(1.0, 1.0, 0.3, 0.3, None, 20, 1))
    write_card(tmp_path / "card.md", Card("mine", training(), settings, None, None))
    assert "1 validation patients are too few" in (tmp_path / "card.md").read_text()


def test_a_card_says_what_the_logits_are_divided_by(tmp_path: Path) -> None:
    settings = Settings(SETTINGS.operating, Temperature(1.5, 1.5, 0.3, 0.25, (0.01, 0.09), 600, 15))
    write_card(tmp_path / "card.md", Card("mine", training(), settings, None, None))
    text = (tmp_path / "card.md").read_text()
    assert "A temperature of 1.5, fitted on 600 slices of 15 validation patients" in text
    assert "0.0100 to 0.0900" in text
    assert "divides its logits by it" in text


@pytest.mark.parametrize(
    ("slices", "said"), [("tumour", "the tumour slices alone"), ("all", "on all slices."), ("0", "alone")]
)
def test_a_card_names_the_slices_in_words(tmp_path: Path, slices: str, said: str) -> None:
    card = Card("mine", training(segmenter_slices=slices, data_terms="public domain"), SETTINGS, None, None)
    write_card(tmp_path / "card.md", card)
    assert said in (tmp_path / "card.md").read_text()
    assert "commercial" not in (tmp_path / "card.md").read_text()


def test_a_card_of_folds_says_how_many_patients_were_judged(tmp_path: Path, folds: list[Path]) -> None:
    pool(folds[:2]).save(tmp_path)
    crossed = CrossValidated.load(tmp_path / POOL_FILE)
    write_card(tmp_path / "card.md", Card("mine", training(), SETTINGS, None, crossed))
    text = (tmp_path / "card.md").read_text()
    assert "4 of 6 patients judged" in text
    assert "Dice per volume at CS" in text
    assert "| f2/judged | 2 | 6 | 0.4 |" in text
    assert "not a test of these very weights" in text


def test_a_card_of_test_patients_names_the_lowest(tmp_path: Path, folds: list[Path]) -> None:
    found = measure(pd.read_csv(folds[2] / "slices.csv"), seed=0, resamples=100)
    calibration = Temperature(1.0, 1.02, 0.3, 0.299, (-0.01, 0.02), 6, 2)
    settings = Settings(SETTINGS.operating, calibration, found.operating)
    write_card(tmp_path / "card.md", Card("mine", training(), settings, found, None))
    text = (tmp_path / "card.md").read_text()
    assert "Of 2 volumes 1 are below Dice 0.5. The lowest:" in text
    assert PATIENTS[5] in text
    assert "-0.0100 to 0.0200" in text
    assert "the graph holds none" in text
    assert "| gate | slices passed |" in text
