from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score

from engine.errors import MachineError, UsageError
from trainer.dataset import Split
from trainer.evaluate import Evaluation, evaluate
from trainer.measure import KEPT, PATHS, tumour_kinds
from trainer.metrics import Average, Bootstrap, Figure, overlaps, resampled_auc, resampled_precision
from trainer.pictures import (
    choose_rows,
    comparison_picture,
    curves,
    operating_picture,
    reliability_picture,
)
from trainer.tables import terminal_table

SIDE = 10
Pixels = tuple[int, int]  # a mask: the pixels from..to, counted along the lines
COLUMNS = (
    "volume,image_path,slice,status,tumor_probability,has_mask,mask_path,"
    "mask_pixels,mask_fraction,bbox_x,bbox_y,bbox_w,bbox_h\n"
)

CS, DU = "TCGA_CS_1_19990101", "TCGA_DU_2_19990101"
TRUTH: dict[str, Pixels] = {
    f"{CS}/{CS}_1.tif": (0, 20),
    f"{CS}/{CS}_2.tif": (0, 0),
    f"{DU}/{DU}_1.tif": (0, 30),
    f"{DU}/{DU}_2.tif": (0, 40),
    f"{DU}/{DU}_3.tif": (0, 0),
}
SCORED: dict[str, tuple[float, Pixels]] = {
    f"{CS}/{CS}_1.tif": (0.8, (10, 30)),
    f"{CS}/{CS}_2.tif": (0.2, (0, 0)),
    f"{DU}/{DU}_1.tif": (0.1, (0, 0)),
    f"{DU}/{DU}_2.tif": (0.9, (0, 40)),
    f"{DU}/{DU}_3.tif": (0.7, (0, 10)),
}


def write_mask(path: Path, pixels: Pixels, side: int = SIDE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((side, side), np.uint8)
    mask.flat[slice(*pixels)] = 255
    assert cv2.imwrite(str(path), mask)


def write_tree(root: Path, truth: Mapping[str, Pixels] = TRUTH) -> Path:
    for name, pixels in truth.items():
        write_mask(root / name.replace(".tif", "_mask.tif"), pixels)
        assert cv2.imwrite(str(root / name), np.full((SIDE, SIDE, 3), 90, np.uint8))
    return root


def write_results(
    out: Path,
    typed: str,
    scored: Mapping[str, tuple[float, Pixels]] = SCORED,
    gate: float = 0.5,
    gated: bool = True,
    quarantined: tuple[str, ...] = (),
) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "results.csv").open("w", newline="") as file:
        file.write(COLUMNS)
        table = csv.writer(file, lineterminator="\n")
        for name, (probability, pixels) in scored.items():
            volume, path = f"{typed}/{Path(name).parent}", f"{typed}/{name}"
            if name in quarantined:
                table.writerow([volume, path, 0, "quarantined", *[""] * 9])
                continue
            count = pixels[1] - pixels[0]
            mask = f"masks/{name}_mask.png" if count else ""
            if count:
                write_mask(out / mask, pixels)
            table.writerow(
                [volume, path, 0, "ok", probability, int(count > 0), mask, count, "", "", "", "", ""]
            )
    (out / "run.json").write_text(json.dumps({"operating_point": {"gate": gated, "gate_threshold": gate}}))
    return out


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "kaggle_3m")


@pytest.fixture
def results(tmp_path: Path, data: Path) -> Path:
    return write_results(tmp_path / "out", str(data))


def average(evaluation: Evaluation, group: str, name: str) -> Average:
    metric = evaluation.measures.metrics[group][name]
    assert isinstance(metric, Average)
    return metric


def value(evaluation: Evaluation, group: str, name: str) -> float | None:
    metric = evaluation.measures.metrics[group][name]
    assert isinstance(metric, Figure)
    return metric.value


def test_volume_metrics_equal_those_by_hand(data: Path, results: Path) -> None:
    volumes = evaluate(results, data).measures.volumes.set_index("patient_id")
    assert volumes.loc[CS, ["tp", "fp", "fn", "tn"]].tolist() == [10, 10, 10, 170]
    assert volumes.loc[DU, ["tp", "fp", "fn", "tn"]].tolist() == [40, 10, 30, 220]
    names = ["dice", "iou", "tversky", "sensitivity", "specificity"]
    assert volumes.loc[CS, names].tolist() == pytest.approx([1 / 2, 1 / 3, 10 / 20, 1 / 2, 17 / 18])
    assert volumes.loc[DU, names].tolist() == pytest.approx([2 / 3, 1 / 2, 40 / 64, 4 / 7, 22 / 23])
    assert volumes.loc[DU, ["institution", "slices", "tumour_slices", "masked_slices"]].tolist() == [
        "DU",
        3,
        2,
        2,
    ]


def test_means_medians_and_counts_equal_those_by_hand(data: Path, results: Path) -> None:
    evaluation = evaluate(results, data)
    volume, tumour = average(evaluation, "volume", "dice"), average(evaluation, "tumour_slice", "dice")
    assert (volume.unit, volume.n, volume.mean) == ("volume", 2, pytest.approx(7 / 12))
    assert (tumour.unit, tumour.n, tumour.mean, tumour.median) == ("tumour slice", 3, 0.5, 0.5)
    every = average(evaluation, "slice", "dice")  # .5, 1 (empty against empty), 0, 1, 0
    assert (every.n, every.mean, every.median) == (5, 0.5, 0.5)
    sensitivity = average(evaluation, "slice", "sensitivity")
    assert (sensitivity.n, sensitivity.mean) == (3, 0.5)
    specificity = average(evaluation, "slice", "specificity")
    assert specificity.mean == pytest.approx((70 / 80 + 1 + 1 + 1 + 90 / 100) / 5)


def test_confusions_and_ranking_equal_those_by_hand(data: Path, results: Path) -> None:
    evaluation = evaluate(results, data)
    assert evaluation.gate_threshold == 0.5
    assert evaluation.measures.confusion["gate"] == {"tn": 1, "fp": 1, "fn": 1, "tp": 2}
    assert evaluation.measures.confusion["has_mask"] == {"tn": 1, "fp": 1, "fn": 1, "tp": 2}
    figures = ("sensitivity", "specificity", "precision", "accuracy", "f1")
    assert [value(evaluation, "gate", name) for name in figures] == pytest.approx(
        [2 / 3, 1 / 2, 2 / 3, 3 / 5, 2 / 3]
    )
    assert value(evaluation, "classifier", "auc") == pytest.approx(4 / 6)
    assert value(evaluation, "classifier", "average_precision") == pytest.approx((1 + 1 + 3 / 5) / 3)


def test_a_slice_at_the_threshold_passes_the_gate(tmp_path: Path, data: Path) -> None:
    out = write_results(tmp_path / "out", str(data), gate=0.7)
    assert evaluate(out, data).measures.confusion["gate"] == {"tn": 1, "fp": 1, "fn": 1, "tp": 2}
    out = write_results(tmp_path / "out", str(data), gate=0.71)
    assert evaluate(out, data).measures.confusion["gate"] == {"tn": 2, "fp": 0, "fn": 1, "tp": 2}


def test_the_gate_is_compared_at_the_digits_of_the_table(tmp_path: Path, data: Path) -> None:
    scored = SCORED | {f"{DU}/{DU}_1.tif": (0.123456, (0, 0))}  # was 0.1234564 before it was written
    out = write_results(tmp_path / "out", str(data), scored, gate=0.1234563)
    assert evaluate(out, data).measures.confusion["gate"]["tp"] == 3


@pytest.mark.parametrize(
    "content", [None, "{}", "not json", "[]", '{"operating_point": {"gate": false, "gate_threshold": 0.5}}']
)
def test_without_a_known_gate_its_confusion_is_left_out(
    data: Path, results: Path, content: str | None
) -> None:
    (results / "run.json").unlink()
    if content is not None:
        (results / "run.json").write_text(content)
    evaluation = evaluate(results, data)
    assert evaluation.gate_threshold is None
    assert list(evaluation.measures.confusion) == ["has_mask"]


def scored_with(results: Path, **point: object) -> Path:
    content = json.loads((results / "run.json").read_text())
    content["operating_point"] |= point
    (results / "run.json").write_text(json.dumps(content))
    return results


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ({}, "none"),
        ({"flips": "all"}, "all"),
        ({"flips": "horizontal", "flip_classifier": True}, "horizontal, classifier too"),
    ],
)
def test_the_flips_of_the_run_are_told(
    data: Path, results: Path, point: dict[str, object], told: str
) -> None:
    assert evaluate(scored_with(results, **point), data).inputs["flips"] == told


def test_ungated_results_of_other_flips_are_refused(tmp_path: Path, data: Path, results: Path) -> None:
    ungated = scored_with(write_results(tmp_path / "free", str(data), gated=False), flips="horizontal")
    with pytest.raises(UsageError, match=r"scored with --flips horizontal, .* with none: score both"):
        evaluate(results, data, ungated=ungated)
    assert evaluate(scored_with(results, flips="horizontal"), data, ungated=ungated).inputs["flips"]


def test_what_the_gate_costs_is_told_by_ungated_results(tmp_path: Path, data: Path, results: Path) -> None:
    scored = SCORED | {f"{DU}/{DU}_1.tif": (0.1, (0, 30))}
    ungated = write_results(tmp_path / "ungated", str(data), scored, gated=False)
    evaluation = evaluate(results, data, ungated=ungated)
    lost = average(evaluation, "gating", "dice_lost")
    assert lost.n == 2
    assert lost.mean == pytest.approx((0 + 14 / 15 - 2 / 3) / 2)
    assert lost.interval == pytest.approx((0, 14 / 15 - 2 / 3))
    assert evaluation.measures.volumes["dice_ungated"].tolist() == pytest.approx([1 / 2, 14 / 15])
    assert "gating" not in evaluate(results, data).measures.metrics


def test_the_operating_table_has_every_gate_that_ungated_results_can_tell_of(
    tmp_path: Path, data: Path, results: Path
) -> None:
    scored = SCORED | {f"{DU}/{DU}_1.tif": (0.1, (0, 30))}
    ungated = write_results(tmp_path / "ungated", str(data), scored, gated=False)
    table = evaluate(results, data, ungated=ungated).measures.operating
    assert table is not None
    rows = table.set_index("gate")
    assert rows.loc[0.0, ["passed", "sensitivity", "dice_lost"]].tolist() == [1, 1, 0]
    found = rows.loc[0.5]  # shuts out the slice of 0.1 that has 30 of its volume's 70 pixels
    assert found["passed"] == pytest.approx(3 / 5)
    assert found["sensitivity"] == pytest.approx(2 / 3)
    assert found["dice_lost"] == pytest.approx((14 / 15 - 2 / 3) / 2)
    assert (found["sensitivity_low"], found["sensitivity_high"]) == pytest.approx((1 / 2, 1))
    alone = evaluate(ungated, data).measures
    assert alone.operating is not None
    assert alone.operating["dice_lost"].tolist() == table["dice_lost"].tolist()
    assert "gating" not in alone.metrics
    assert evaluate(results, data).measures.operating is None


def test_gated_results_are_refused_as_ungated_ones(data: Path, results: Path) -> None:
    with pytest.raises(UsageError, match="was scored with a gate: score it again with --no-gate"):
        evaluate(results, data, ungated=results)


def test_the_share_of_slices_that_pass_is_measured(data: Path, results: Path) -> None:
    evaluation = evaluate(results, data)
    assert value(evaluation, "gate", "passed") == pytest.approx(3 / 5)
    assert evaluation.measures.metrics["gate"]["passed"].interval == pytest.approx((1 / 2, 2 / 3))


def test_tumour_slices_are_told_apart_by_what_makes_them_hard(tmp_path: Path) -> None:
    truth = {f"{CS}/{CS}_{i}.tif": (0, 20) for i in range(1, 6)}
    data = write_tree(tmp_path / "data", truth)
    for i in range(1, 6):
        image = np.full((SIDE, SIDE, 3), (10, 20, 30) if i != 3 else (10, 20, 20), np.uint8)
        assert cv2.imwrite(str(data / CS / f"{CS}_{i}.tif"), image[..., ::-1])
    out = write_results(
        tmp_path / "out", str(data), {name: (0.9, (0, 20 if "_4" in name else 0)) for name in truth}
    )
    evaluation = evaluate(out, data)
    dice = {kind: average(evaluation, kind, "dice") for kind in tumour_kinds(evaluation.measures.slices)}
    assert {kind: metric.n for kind, metric in dice.items()} == {
        "small_lesion": 0,
        "edge_slice": 2,
        "missing_sequence": 1,
        "plain_slice": 2,
    }
    assert value(evaluation, "plain_slice", "missed") == 1 / 2
    assert value(evaluation, "edge_slice", "missed") == 1
    assert value(evaluation, "volume", "failed") == 1


def test_quarantined_slices_do_not_spoil_the_calibration(tmp_path: Path, data: Path) -> None:
    out = write_results(tmp_path / "out", str(data), quarantined=(f"{DU}/{DU}_2.tif",))
    likelihood = average(evaluate(out, data), "calibration", "likelihood")
    assert likelihood.n == 4
    assert likelihood.mean == pytest.approx(-np.log([0.8, 0.8, 0.1, 0.3]).mean())


def test_ungated_results_of_other_slices_are_refused(tmp_path: Path, data: Path, results: Path) -> None:
    fewer = {name: scored for name, scored in SCORED.items() if not name.endswith("_3.tif")}
    ungated = write_results(tmp_path / "ungated", str(data), fewer, gated=False)
    with pytest.raises(
        UsageError, match=r"other slices .* 1 are in one of them only, the first is .*_3\.tif"
    ):
        evaluate(results, data, ungated=ungated)


def test_intervals_come_from_resampling_whole_patients(data: Path, results: Path) -> None:
    # Two patients: a quarter of the resamples is twice the one, a quarter twice the other.
    evaluation = evaluate(results, data)
    assert average(evaluation, "volume", "dice").interval == pytest.approx((1 / 2, 2 / 3))
    assert average(evaluation, "slice", "dice").interval == pytest.approx((1 / 3, 3 / 4))
    assert average(evaluation, "tumour_slice", "dice").interval == pytest.approx((1 / 2, 1 / 2))
    accuracy = evaluation.measures.metrics["gate"]["accuracy"]
    assert accuracy.interval == pytest.approx((1 / 3, 1))


def test_one_patient_has_no_interval(tmp_path: Path) -> None:
    data = write_tree(tmp_path / "data", {name: pixels for name, pixels in TRUTH.items() if CS in name})
    out = write_results(
        tmp_path / "out", str(data), {name: scored for name, scored in SCORED.items() if CS in name}
    )
    evaluation = evaluate(out, data)
    assert average(evaluation, "volume", "dice").interval is None
    assert value(evaluation, "classifier", "auc") == 1.0


def test_resampled_auc_and_precision_equal_scikit_learns_on_every_resample() -> None:
    rng = np.random.default_rng(0)
    owners = rng.integers(6, size=80)
    sick = rng.random(80) < 0.4
    scores = (rng.random(80) + 0.3 * sick).round(1)  # ties
    bootstrap = Bootstrap.of(6, seed=1, resamples=100)
    weights = bootstrap.weights[:, owners]
    aucs = [roc_auc_score(sick, scores, sample_weight=weight) for weight in weights]
    precisions = [average_precision_score(sick, scores, sample_weight=weight) for weight in weights]
    assert resampled_auc(sick, scores, owners, bootstrap) == pytest.approx(aucs)
    assert resampled_precision(sick, scores, owners, bootstrap) == pytest.approx(precisions)


def test_seed_and_resamples_fix_the_intervals(data: Path, results: Path) -> None:
    assert evaluate(results, data, seed=1).as_json() == evaluate(results, data, seed=1).as_json()
    assert json.loads(evaluate(results, data, resamples=50).as_json())["bootstrap"]["resamples"] == 50


def test_empty_against_empty_has_dice_one_and_undefined_is_nan() -> None:
    counts = ([0, 0, 0], [0, 5, 0], [0, 0, 5], [9, 4, 4])
    metrics = overlaps(*(np.array(count, dtype=np.int64) for count in counts))
    assert metrics["dice"].tolist() == [1, 0, 0]
    assert metrics["iou"].tolist() == [1, 0, 0]
    assert metrics["tversky"].tolist() == [1, 0, 0]
    assert np.isnan(metrics["sensitivity"][:2]).all()
    assert metrics["sensitivity"][2] == 0
    assert metrics["specificity"].tolist() == pytest.approx([1, 4 / 9, 1])


def test_data_without_any_tumour_has_null_where_nothing_is_defined(tmp_path: Path) -> None:
    data = write_tree(tmp_path / "data", dict.fromkeys(TRUTH, (0, 0)))
    out = write_results(tmp_path / "out", str(data), dict.fromkeys(TRUTH, (0.1, (0, 0))))
    metrics = json.loads(evaluate(out, data).as_json())["metrics"]
    assert metrics["volume"]["dice"]["mean"] == 1
    assert metrics["volume"]["sensitivity"] == {
        "unit": "volume",
        "n": 0,
        "mean": None,
        "median": None,
        "interval": None,
    }
    assert metrics["classifier"]["auc"]["value"] is None
    assert metrics["gate"]["precision"]["value"] is None


@pytest.mark.parametrize(
    "typed", ["kaggle_3m", "./kaggle_3m", "{tmp}/kaggle_3m", "elsewhere/of/another/machine"]
)
def test_results_join_however_the_folder_was_typed(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    out = write_results(tmp_path / "out", typed.format(tmp=tmp_path))
    join = evaluate(out, "./kaggle_3m").join
    assert (join.slices, join.patients) == (5, 2)
    assert join.on == ("image_path" if typed == "./kaggle_3m" else "patient folder/file name")


def test_results_that_join_nowhere_are_refused_with_an_example_of_each(tmp_path: Path, data: Path) -> None:
    out = write_results(tmp_path / "out", "else", {"where/x.tif": (0.5, (0, 0))})
    with pytest.raises(UsageError, match=rf"results have else/where/x\.tif, the data .*{CS}_1\.tif"):
        evaluate(out, data)


def test_slices_that_only_one_side_has_are_counted(tmp_path: Path, data: Path) -> None:
    scored = {name: s for name, s in SCORED.items() if not name.endswith("_3.tif")} | {
        "x/y.tif": (0.5, (0, 0))
    }
    out = write_results(tmp_path / "out", str(data), scored)
    with (out / "results.csv").open("a") as file:  # a second page of a file that has truth for its first
        file.write(f"{data}/{CS},{data}/{CS}/{CS}_1.tif,1,ok,0.5,0,,0,0,,,,\n")
    join = evaluate(out, data).join
    assert (join.slices, join.results_without_truth, join.truth_without_results) == (4, 2, 1)
    assert join.results_without_truth_example == f"{data}/x/y.tif"
    assert join.truth_without_results_example == f"{data}/{DU}/{DU}_3.tif"


def test_two_scored_trees_with_the_same_slices_are_refused(tmp_path: Path, data: Path) -> None:
    scored = {f"{tree}/{name}": s for tree in ("a", "b") for name, s in SCORED.items()}
    out = write_results(tmp_path / "out", "typed", scored)
    with pytest.raises(UsageError, match=rf"{CS}/{CS}_1\.tif more than once"):
        evaluate(out, data)


def test_a_quarantined_slice_counts_as_predicted_empty_and_is_reported(tmp_path: Path, data: Path) -> None:
    out = write_results(tmp_path / "out", str(data), quarantined=(f"{DU}/{DU}_2.tif",))
    evaluation = evaluate(out, data)
    assert evaluation.join.quarantined == 1
    volumes = evaluation.measures.volumes.set_index("patient_id")
    assert volumes.loc[DU, ["tp", "fp", "fn", "quarantined"]].tolist() == [0, 10, 70, 1]
    assert evaluation.measures.confusion["gate"]["fn"] == 2
    assert value(evaluation, "classifier", "auc") == pytest.approx(2 / 6)


def test_a_split_limits_the_evaluation_to_its_test_patients(
    tmp_path: Path, data: Path, results: Path
) -> None:
    Split("patient", 0, (CS,), (), (DU,)).save(tmp_path / "split.json")
    evaluation = evaluate(results, data, split=tmp_path / "split.json")
    assert evaluation.measures.volumes["patient_id"].tolist() == [DU]
    assert (evaluation.join.results_outside_part, evaluation.join.truth_without_results) == (2, 0)
    assert evaluation.inputs["part"] == "test"
    train = evaluate(results, data, split=tmp_path / "split.json", part="train")
    assert train.measures.volumes["patient_id"].tolist() == [CS]


def test_a_part_without_a_split_or_of_no_split_is_refused(tmp_path: Path, data: Path, results: Path) -> None:
    Split("patient", 0, (CS,), (), (DU,)).save(tmp_path / "split.json")
    with pytest.raises(UsageError, match="--part test: give --split"):
        evaluate(results, data, part="test")
    with pytest.raises(UsageError, match="one of train, validation, test"):
        evaluate(results, data, split=tmp_path / "split.json", part="exam")


def test_a_part_that_holds_nobody_is_one_line_that_names_the_others(
    tmp_path: Path, data: Path, results: Path
) -> None:
    Split("patient", 0, (CS,), (DU,), ()).save(tmp_path / "split.json")
    with pytest.raises(UsageError, match=r"nobody in its test part: .*--part \(train, validation\)"):
        evaluate(results, data, split=tmp_path / "split.json", part="test")


def test_a_part_that_was_not_scored_is_refused(tmp_path: Path, data: Path) -> None:
    out = write_results(tmp_path / "out", str(data), {name: s for name, s in SCORED.items() if CS in name})
    Split("patient", 0, (CS,), (), (DU,)).save(tmp_path / "split.json")
    with pytest.raises(UsageError, match="scored no slice of the part"):
        evaluate(out, data, split=tmp_path / "split.json")


def test_a_folder_that_holds_no_results_is_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UsageError, match="give the output folder of `tumorscan score`"):
        evaluate(tmp_path, data)
    (tmp_path / "results.csv").write_text("image_path,slice\nx,0\n")
    with pytest.raises(UsageError, match="no column status, tumor_probability, has_mask, mask_path"):
        evaluate(tmp_path, data)
    (tmp_path / "results.csv").write_text("")
    with pytest.raises(UsageError, match="not a table of results"):
        evaluate(tmp_path, data)
    (tmp_path / "results.csv").write_text(COLUMNS)
    with pytest.raises(UsageError, match="no slices"):
        evaluate(tmp_path, data)


def test_a_value_that_is_no_number_is_named(data: Path, results: Path) -> None:
    table = results / "results.csv"
    table.write_text(table.read_text().replace(",ok,0.8,", ",ok,much,"))
    with pytest.raises(UsageError, match=rf"slice 1: .*{CS}_1\.tif has a value that is no number"):
        evaluate(results, data)


def test_masks_that_are_missing_or_of_another_size_are_named(data: Path, results: Path) -> None:
    mask = results / "masks" / CS / f"{CS}_1.tif_mask.png"
    write_mask(mask, (0, 3), side=SIDE + 1)
    with pytest.raises(UsageError, match=rf"{CS}_1\.tif_mask\.png is 11x11, but the true mask .* is 10x10"):
        evaluate(results, data)
    mask.unlink()
    with pytest.raises(UsageError, match=rf"cannot read the mask .*{CS}_1\.tif_mask\.png"):
        evaluate(results, data)


def test_results_scored_without_masks_are_refused(data: Path, results: Path) -> None:
    table = results / "results.csv"
    table.write_text(table.read_text().replace(f"masks/{CS}/{CS}_1.tif_mask.png", ""))
    with pytest.raises(UsageError, match="--masks png"):
        evaluate(results, data)


def test_the_files_hold_what_was_found(tmp_path: Path, data: Path, results: Path) -> None:
    evaluation = evaluate(results, data)
    evaluation.save(tmp_path / "report")
    content = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert content["metrics"]["volume"]["dice"]["mean"] == pytest.approx(7 / 12)
    assert content["metrics"]["slice"]["dice"]["unit"] == "slice"
    assert content["institutions"]["DU"] == {
        "volumes": 1,
        "slices": 3,
        "dice": pytest.approx(2 / 3),
        "iou": 0.5,
        "tversky": 0.625,
        "sensitivity": pytest.approx(4 / 7),
        "specificity": pytest.approx(22 / 23),
        "dice_median": pytest.approx(2 / 3),
        "dice_low": None,  # one patient has no interval
        "dice_high": None,
    }
    assert "empty" in content["conventions"]
    assert [each["slices"] for each in content["reliability"]] == [0, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    volumes = pd.read_csv(tmp_path / "report" / "dice.csv")
    assert volumes["patient_id"].tolist() == [CS, DU]
    assert list(pd.read_csv(tmp_path / "report" / "slices.csv")) == [*KEPT, *PATHS]
    assert not (tmp_path / "report" / "operating.csv").exists()


def test_an_output_that_cannot_be_written_is_one_error(tmp_path: Path, data: Path, results: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write the evaluation"):
        evaluate(results, data).save(tmp_path / "file" / "report")


def test_the_table_shows_metric_mean_median_and_interval(data: Path, results: Path) -> None:
    text = io.StringIO()
    evaluation = evaluate(results, data)
    table = terminal_table(evaluation.measures, "results", evaluation.join.notes())
    Console(file=text, width=140).print(table)
    assert [str(column.header) for column in table.columns] == ["metric", "mean", "median", "95% interval"]
    assert "volume dice (2)" in text.getvalue()
    assert "0.500 to 0.667" in text.getvalue()
    assert "gate: tn 1 fp 1 fn 1 tp 2" in text.getvalue()


def test_the_picture_has_a_line_of_five_a_slice(tmp_path: Path, data: Path, results: Path) -> None:
    rows = choose_rows(evaluate(results, data).measures.slices)
    comparison_picture(rows, tmp_path / "all.png")
    comparison_picture(rows.head(1), tmp_path / "one.png")
    every, one = cv2.imread(str(tmp_path / "all.png")), cv2.imread(str(tmp_path / "one.png"))
    assert every is not None
    assert one is not None
    assert len(rows) == 4
    assert every.shape[0] == 4 * one.shape[0]
    assert every.shape[1] == one.shape[1]


def test_the_picture_shows_hits_over_the_range_of_dice_a_miss_and_a_false_alarm() -> None:
    dice = np.linspace(1, 0.1, 10).tolist()
    slices = pd.DataFrame(
        {
            "mask": [1] * 12 + [0] * 3,
            "tp": [5] * 10 + [0] * 5,
            "fp": [1] * 10 + [0, 0, 3, 8, 0],
            "fn": [1] * 10 + [7, 9, 0, 0, 0],
            "dice": [*dice, 0, 0, 0, 0, 1],
        }
    )
    assert list(choose_rows(slices, 6).index) == [0, 3, 6, 9, 11, 13]
    assert list(choose_rows(slices.iloc[:10], 6).index) == [0, 2, 4, 5, 7, 9]
    assert list(choose_rows(slices.iloc[10:], 6).index) == [11, 13]


def test_a_picture_of_nothing_is_refused(tmp_path: Path, data: Path, results: Path) -> None:
    slices = evaluate(results, data).measures.slices
    with pytest.raises(UsageError, match="no slice with a tumour or a mask"):
        comparison_picture(choose_rows(slices[slices["dice"] == 1].query("mask == 0")), tmp_path / "none.png")


def test_a_picture_is_drawn_of_names_that_are_no_plain_text(tmp_path: Path) -> None:
    name = f"{CS}/a $x_$ \u8133 \u202e.tif"
    data = write_tree(tmp_path / "data", {name: (0, 20)})
    out = write_results(tmp_path / "out", str(data), {name: (0.8, (0, 10))})
    comparison_picture(choose_rows(evaluate(out, data).measures.slices), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_reliability_and_gates_are_drawn(tmp_path: Path, data: Path, results: Path) -> None:
    ungated = write_results(tmp_path / "ungated", str(data), gated=False)
    found = evaluate(results, data, ungated=ungated).measures
    assert found.operating is not None
    reliability_picture(found.reliability, tmp_path / "reliability.png")
    operating_picture(found.operating, 0.5, tmp_path / "operating.png")
    for name in ("reliability", "operating"):
        assert cv2.imread(str(tmp_path / f"{name}.png")) is not None


def test_one_patient_and_one_kind_of_slice_can_be_drawn_too(tmp_path: Path) -> None:
    truth = {name: pixels for name, pixels in TRUTH.items() if CS in name and pixels == (0, 0)}
    data = write_tree(tmp_path / "data", truth)
    out = write_results(tmp_path / "out", str(data), dict.fromkeys(truth, (0.1, (0, 0))), gated=False)
    found = evaluate(out, data).measures
    assert found.operating is not None
    reliability_picture(found.reliability, tmp_path / "reliability.png")
    operating_picture(found.operating, None, tmp_path / "operating.png")
    assert (tmp_path / "operating.png").is_file()


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves_are_drawn_of_a_history(tmp_path: Path, epochs: int) -> None:
    history = pd.DataFrame(
        {
            "epoch": range(epochs),
            "accuracy": 0.5,
            "learning_rate": 1e-3,
            "loss": np.linspace(1, 0.5, epochs),
            "val_loss": np.linspace(1, 0.7, epochs),
            "val_accuracy": 0.6,
        }
    )
    history.to_csv(tmp_path / "history.csv", index=False)
    curves(tmp_path / "history.csv", tmp_path / "curves.png")
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture is not None
    assert picture.shape[1] > 3 * picture.shape[0]  # three panels beside each other


@pytest.mark.parametrize("content", ["", "epoch,loss\n", "loss\n1\n"])
def test_a_history_without_epochs_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "history.csv").write_text(content)
    with pytest.raises(UsageError, match=r"history\.csv"):
        curves(tmp_path / "history.csv", tmp_path / "curves.png")
