"""Holds the output of `tumorscan score` against true masks: per slice, per volume, and at the gate."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from engine.errors import MachineError, UsageError
from trainer.dataset import PARTS, Part, Split, institution_of, load_frame, read_mask
from trainer.joining import Join, join_results
from trainer.metrics import (
    OVERLAPS,
    Average,
    Booleans,
    Bootstrap,
    Figure,
    Floats,
    confusions,
    number,
    overlaps,
    ranking,
    rates,
)

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

EVALUATION_FORMAT = 1
COUNTS = ["tp", "fp", "fn", "tn"]

CONVENTIONS = {
    "volume": "all joined slices of one patient, their pixels pooled",
    "tumour_slice": "a slice with any true pixel",
    "empty": "Dice, IoU and Tversky of an empty prediction against an empty truth are 1",
    "undefined": "sensitivity where nothing is true and specificity where all is are left out of the means",
    "tversky": "tp / (tp + 0.7 fn + 0.3 fp)",
    "quarantined": "a quarantined slice counts as predicted empty, with tumor_probability 0",
    "gate": "called tumour: tumor_probability >= gate_threshold, at the six digits of results.csv",
    "has_mask": "called tumour: has_mask is 1",
    "interval": "95% percentile bootstrap of the mean (or of the value), resampling whole patients",
    "dice_lost": "per-volume Dice of the ungated results less that of the results, patient by patient",
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found.

    `slices` has a row for each joined slice: image_path, mask_path, mask (0/1), patient_id, institution,
    tumor_probability, has_mask (0/1), predicted_path ("" where the prediction is empty), quarantined, tp, fp,
    fn, tn (pixels) and the overlap metrics. `volumes` has a row for each patient.
    """

    inputs: Mapping[str, str | None]
    join: Join
    gate_threshold: float | None
    metrics: Mapping[str, Mapping[str, Average | Figure]]
    confusion: Mapping[str, Mapping[str, int]]
    institutions: Mapping[str, Mapping[str, float | int | None]]
    seed: int
    resamples: int
    slices: pd.DataFrame
    volumes: pd.DataFrame

    def as_json(self) -> str:
        """Everything but the two tables, in a fixed order; an undefined number is null."""
        content = {
            "format": EVALUATION_FORMAT,
            "inputs": self.inputs,
            "join": asdict(self.join),
            "gate_threshold": self.gate_threshold,
            "metrics": {
                group: {name: asdict(metric) for name, metric in metrics.items()}
                for group, metrics in self.metrics.items()
            },
            "confusion": self.confusion,
            "institutions": self.institutions,
            "bootstrap": {"unit": "patient", "level": 0.95, "resamples": self.resamples, "seed": self.seed},
            "conventions": CONVENTIONS,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes evaluation.json and volumes.csv into `folder`. Raises MachineError where it cannot."""
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            (target / "evaluation.json").write_text(self.as_json(), encoding="utf-8")
            self.volumes.to_csv(target / "volumes.csv", index=False, lineterminator="\n")
        except OSError as error:
            raise MachineError(f"cannot write the evaluation into {target}: {error.strerror}") from error


def evaluate(
    results_dir: str | os.PathLike[str],
    data_root: str | os.PathLike[str],
    ungated: str | os.PathLike[str] | None = None,
    split: str | os.PathLike[str] | None = None,
    part: str | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Evaluation:
    """Joins results.csv of `results_dir` with the truth under `data_root`, and measures.

    `ungated` is a second output folder, of the same slices scored with --no-gate: what the gate costs.
    `split` limits the evaluation to one `part` of a split file, "test" unless said otherwise. Masks are read
    pair by pair. `CONVENTIONS` says what every number means.

    Raises UsageError when results or data are missing or do not join, when a mask is missing or has another
    size than its truth, when `ungated` holds other slices, and for a part that is none or lacks its split.
    """
    if part is not None and (split is None or part not in PARTS):
        raise UsageError(f"--part {part}: give --split FILE with it, and one of {', '.join(PARTS)}")
    truth = load_frame(data_root)
    chosen = None if split is None else Split.load(split)
    wanted = (
        truth if chosen is None else chosen.select(truth, cast("Part", part or "test"), allow_unknown=True)
    )

    slices, join = join_results(Path(results_dir), truth, wanted)
    slices = _with_pixels(slices)
    volumes = _volumes(slices)
    gate = _gate_threshold(Path(results_dir))
    called = {"has_mask": slices["has_mask"].to_numpy() == 1}
    if gate is not None:
        called = {"gate": _passed(_floats(slices["tumor_probability"]), gate)} | called

    numbers = {patient: number for number, patient in enumerate(volumes["patient_id"])}
    owners = slices["patient_id"].map(numbers).to_numpy(np.int64)
    each = np.arange(len(volumes))
    sick = slices["mask"].to_numpy() == 1
    bootstrap = Bootstrap.of(len(volumes), seed, resamples)
    tables = {name: confusions(sick, positive, owners, bootstrap) for name, positive in called.items()}
    metrics: dict[str, dict[str, Average | Figure]] = {
        "volume": {name: bootstrap.average(_floats(volumes[name]), each, "volume") for name in OVERLAPS},
        "slice": {name: bootstrap.average(_floats(slices[name]), owners, "slice") for name in OVERLAPS},
        "tumour_slice": {
            name: bootstrap.average(_floats(slices[name])[sick], owners[sick], "tumour slice")
            for name in ("dice", "iou", "tversky")
        },
        "classifier": ranking(sick, _floats(slices["tumor_probability"]), owners, bootstrap),
        **{name: rates(table, bootstrap) for name, table in tables.items()},
    }
    if ungated is not None:
        volumes["dice_ungated"] = _ungated_dice(Path(ungated), truth, wanted, slices)
        lost = _floats(volumes["dice_ungated"]) - _floats(volumes["dice"])
        metrics["gating"] = {"dice_lost": bootstrap.average(lost, each, "volume")}
    return Evaluation(
        inputs={
            "results": os.fspath(results_dir),
            "data": os.fspath(data_root),
            "ungated": None if ungated is None else os.fspath(ungated),
            "split": None if split is None else os.fspath(split),
            "split_sha256": None if chosen is None else chosen.sha256,
            "part": None if chosen is None else part or "test",
        },
        join=join,
        gate_threshold=gate,
        metrics=metrics,
        confusion={
            name: dict(zip(("tn", "fp", "fn", "tp"), map(int, table.sum(axis=0)), strict=True))
            for name, table in tables.items()
        },
        institutions=_institutions(volumes),
        seed=seed,
        resamples=resamples,
        slices=slices,
        volumes=volumes,
    )


def render(evaluation: Evaluation) -> Table:
    """The evaluation as a table for a terminal: metric, mean (or value), median, 95% interval."""
    from rich.table import Table
    from rich.text import Text

    join = evaluation.join
    asides = {
        "quarantined": join.quarantined,
        "results without truth": join.results_without_truth,
        "slices of the data without results": join.truth_without_results,
        "results outside the part": join.results_outside_part,
    }
    notes = [f"{join.slices} slices of {join.patients} patients joined on {join.on}"]
    notes += [f"{count} {what}" for what, count in asides.items() if count]
    confusions = [
        f"{name}: " + " ".join(f"{key} {count}" for key, count in counts.items())
        for name, counts in evaluation.confusion.items()
    ]
    caption = "\n".join([", ".join(notes), *confusions])
    table = Table(title=Text(f"{evaluation.inputs['results']}"), caption=Text(caption))
    table.add_column("metric")
    for heading in ("mean", "median", "95% interval"):
        table.add_column(heading, justify="right")
    for group, metrics in evaluation.metrics.items():
        for name, metric in metrics.items():
            mean, median = (
                (metric.mean, metric.median) if isinstance(metric, Average) else (metric.value, None)
            )
            interval = "" if metric.interval is None else "{:.3f} to {:.3f}".format(*metric.interval)
            label = f"{group.replace('_', ' ')} {name.replace('_', ' ')} ({metric.n})"
            table.add_row(label, _shown(mean), _shown(median), interval)
        table.add_section()
    for name, means in evaluation.institutions.items():
        table.add_row(
            f"volume dice at {name or 'no institution'} ({means['volumes']})", _shown(means["dice"])
        )
    return table


def _with_pixels(slices: pd.DataFrame) -> pd.DataFrame:
    """Adds institution, tp, fp, fn, tn and the overlap metrics, reading one pair of masks after the other."""
    counts = np.zeros((len(slices), 4), np.int64)
    pairs = zip(slices["mask_path"], slices["predicted_path"], strict=True)
    for i, (mask_path, predicted_path) in enumerate(pairs):
        true = read_mask(mask_path)
        predicted = read_mask(predicted_path) if predicted_path else np.zeros_like(true)
        if predicted.shape != true.shape:
            raise UsageError(
                f"{predicted_path} is {predicted.shape[1]}x{predicted.shape[0]}, but the true mask "
                f"{mask_path} is {true.shape[1]}x{true.shape[0]}: the results are of other images"
            )
        tp = np.count_nonzero(true & predicted)
        fp = np.count_nonzero(predicted) - tp
        fn = np.count_nonzero(true) - tp
        counts[i] = tp, fp, fn, true.size - tp - fp - fn
    slices = slices.assign(institution=[institution_of(patient) for patient in slices["patient_id"]])
    slices[COUNTS] = counts
    return slices.assign(**overlaps(*counts.T))


def _volumes(slices: pd.DataFrame) -> pd.DataFrame:
    """One row a patient, in the order of the slices."""
    groups = slices.groupby("patient_id", sort=False)
    volumes = groups.agg(
        institution=("institution", "first"),
        slices=("mask", "size"),
        tumour_slices=("mask", "sum"),
        masked_slices=("has_mask", "sum"),
        quarantined=("quarantined", "sum"),
        tp=("tp", "sum"),
        fp=("fp", "sum"),
        fn=("fn", "sum"),
        tn=("tn", "sum"),
    ).reset_index()
    return volumes.assign(**overlaps(*(volumes[name].to_numpy(np.int64) for name in COUNTS)))


def _ungated_dice(
    results_dir: Path, truth: pd.DataFrame, wanted: pd.DataFrame, gated: pd.DataFrame
) -> Floats:
    slices, _ = join_results(results_dir, truth, wanted)
    if list(slices["image_path"]) != list(gated["image_path"]):
        odd = sorted(set(slices["image_path"]) ^ set(gated["image_path"]))
        raise UsageError(
            f"{results_dir} holds other slices than the results it is compared with: "
            f"{len(odd)} are in one of them only, the first is {odd[0]}"
        )
    return _floats(_volumes(_with_pixels(slices))["dice"])


def _gate_threshold(results_dir: Path) -> float | None:
    """The gate of the run; None, and said so, where it had none or run.json does not tell."""
    path = results_dir / "run.json"
    try:
        operating = json.loads(path.read_bytes())["operating_point"]
        gated, threshold = bool(operating["gate"]), float(operating["gate_threshold"])
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s names no gate threshold: the confusion at the gate is left out", path)
        return None
    if not gated:
        log.info("%s was scored without a gate: the confusion at the gate is left out", results_dir)
        return None
    return threshold


def _passed(probabilities: Floats, gate: float) -> Booleans:
    # results.csv rounds to six digits: an unrounded gate would shut out a slice that had just passed it.
    return probabilities >= float(f"{gate:.6g}")


def _institutions(volumes: pd.DataFrame) -> dict[str, dict[str, float | int | None]]:
    """Means of the per-volume metrics at each institution, by name."""
    return {
        str(name): {"volumes": len(group), "slices": int(group["slices"].sum())}
        | {metric: number(group[metric].mean()) for metric in OVERLAPS}
        for name, group in volumes.groupby("institution")
    }


def _floats(column: pd.Series) -> Floats:
    return column.to_numpy(np.float64)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
