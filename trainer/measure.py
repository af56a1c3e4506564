"""Every number of a set of scored slices whose truth is known, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from trainer.calibration import Reliability, reliability
from trainer.gates import DRAWN, Ungated, trade_off
from trainer.metrics import (
    OVERLAPS,
    Average,
    Booleans,
    Bootstrap,
    Figure,
    Floats,
    Integers,
    confusions,
    number,
    overlaps,
    ranking,
    rates,
)

COUNTS = ["tp", "fp", "fn", "tn"]
KEPT = [
    *("image_path", "patient_id", "institution", "mask", "tumor_probability", "has_mask", "quarantined"),
    *("passed", "missing", *COUNTS, "ungated_tp", "ungated_fp"),
]
"""The columns that `measure` needs, and slices.csv keeps."""
PATHS = ["mask_path", "predicted_path"]
"""What slices.csv keeps beside them, for pictures."""
SMALL = 0.005
"""A lesion on less of the slice is small; the LGG set's tenth percentile is 0.0048."""
FAILED = 0.5
"""Dice of a volume below which the cascade failed on it."""

CONVENTIONS = {
    "volume": "all joined slices of one patient, their pixels pooled",
    "tumour_slice": "a slice with any true pixel",
    "empty": "Dice, IoU and Tversky of an empty prediction against an empty truth are 1",
    "undefined": "sensitivity where nothing is true and specificity where all is are left out of the means",
    "tversky": "tp / (tp + 0.7 fn + 0.3 fp)",
    "failed": f"a volume whose Dice is below {FAILED}",
    "missed": "a tumour slice without a mask",
    "small_lesion": f"a tumour slice with a truth of less than {SMALL:.1%} of its pixels",
    "edge_slice": "the first and the last tumour slice of a volume",
    "missing_sequence": "a tumour slice in which another channel repeats the middle one (FLAIR)",
    "plain_slice": "a tumour slice that is none of these three",
    "quarantined": "a quarantined slice counts as predicted empty, with tumor_probability 0; the calibration "
    "leaves it out",
    "gate": "called tumour: tumor_probability >= gate_threshold, at the six digits of results.csv",
    "passed": "the share of all slices that the gate lets through",
    "has_mask": "called tumour: has_mask is 1",
    "calibration": "error: expected calibration error of ten bins of equal width; likelihood: negative log "
    "likelihood in nats a slice",
    "interval": "95% percentile bootstrap of the mean (or of the value), resampling whole patients",
    "dice_lost": "per-volume Dice of the ungated results less that of the results, patient by patient",
}


@dataclass(frozen=True, slots=True)
class Measures:
    """What `measure` found.

    `slices` is what it was given with the overlap metrics added; `volumes` has a row for each patient;
    `operating` is the `trade_off` of gates, None where no ungated pixels are known.
    """

    metrics: Mapping[str, Mapping[str, Average | Figure]]
    confusion: Mapping[str, Mapping[str, int]]
    institutions: Mapping[str, Mapping[str, float | int | None]]
    reliability: Reliability
    operating: pd.DataFrame | None
    slices: pd.DataFrame
    volumes: pd.DataFrame
    seed: int
    resamples: int


def measure(slices: pd.DataFrame, seed: int, resamples: int, gate: float | None = None) -> Measures:
    """Measure slices, at least one, that have the columns of KEPT.

    `passed` is NaN where there was no gate, `ungated_tp` and `ungated_fp` where no ungated mask is known, for
    all slices or none. `gate` is a threshold that the trade-off is to include.
    """
    slices = slices.assign(**overlaps(*(slices[name].to_numpy(np.int64) for name in COUNTS)))
    volumes = _volumes(slices)
    numbers = {patient: index for index, patient in enumerate(volumes["patient_id"])}
    owners = slices["patient_id"].map(numbers).to_numpy(np.int64)
    sick = slices["mask"].to_numpy() == 1
    bootstrap = Bootstrap.of(len(volumes), seed, resamples)
    called = {"has_mask": slices["has_mask"].to_numpy() == 1}
    if slices["passed"].notna().all():
        called = {"gate": slices["passed"].to_numpy() == 1} | called
    tables = {name: confusions(sick, positive, owners, bootstrap) for name, positive in called.items()}
    answered = ~slices["quarantined"].to_numpy(bool)
    reliable = reliability(
        sick[answered], _floats(slices["tumor_probability"])[answered], owners[answered], bootstrap
    )
    ungated = _ungated(slices, owners)
    metrics: dict[str, dict[str, Average | Figure]] = {
        "volume": _of_volumes(volumes, bootstrap),
        "slice": {name: bootstrap.average(_floats(slices[name]), owners, "slice") for name in OVERLAPS},
        "tumour_slice": {
            name: bootstrap.average(_floats(slices[name])[sick], owners[sick], "tumour slice")
            for name in ("dice", "iou", "tversky")
        },
        **_of_kinds(slices, owners, bootstrap),
        "classifier": ranking(sick, _floats(slices["tumor_probability"]), owners, bootstrap),
        "calibration": {"error": reliable.error, "likelihood": reliable.likelihood},
        **{name: rates(table, bootstrap) for name, table in tables.items()},
    }
    if "gate" in called:
        passed = bootstrap.average(called["gate"].astype(np.float64), owners, "slice")
        metrics["gate"]["passed"] = Figure("slice", passed.n, passed.mean, passed.interval)
    if ungated is not None and "gate" in called:
        volumes["dice_ungated"] = ungated.dice(gate=0.0)
        lost = _floats(volumes["dice_ungated"]) - _floats(volumes["dice"])
        metrics["gating"] = {"dice_lost": bootstrap.average(lost, np.arange(len(volumes)), "volume")}
    gates = DRAWN if gate is None else (*DRAWN, float(f"{gate:.6g}"))
    return Measures(
        metrics=metrics,
        confusion={
            name: dict(zip(("tn", "fp", "fn", "tp"), map(int, table.sum(axis=0)), strict=True))
            for name, table in tables.items()
        },
        institutions=_institutions(volumes, seed, resamples),
        reliability=reliable,
        operating=None if ungated is None else trade_off(ungated, gates, bootstrap),
        slices=slices,
        volumes=volumes,
        seed=seed,
        resamples=resamples,
    )


def _volumes(slices: pd.DataFrame) -> pd.DataFrame:
    """One row a patient, in the order of the slices."""
    groups = slices.groupby("patient_id", sort=False)
    volumes = groups.agg(
        institution=("institution", "first"),
        slices=("mask", "size"),
        tumour_slices=("mask", "sum"),
        masked_slices=("has_mask", "sum"),
        quarantined=("quarantined", "sum"),
        **{name: (name, "sum") for name in COUNTS},
    ).reset_index()
    return volumes.assign(**overlaps(*(volumes[name].to_numpy(np.int64) for name in COUNTS)))


def _of_volumes(volumes: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Average | Figure]:
    each = np.arange(len(volumes))
    found: dict[str, Average | Figure] = {
        name: bootstrap.average(_floats(volumes[name]), each, "volume") for name in OVERLAPS
    }
    failed = bootstrap.average((_floats(volumes["dice"]) < FAILED).astype(np.float64), each, "volume")
    return found | {"failed": Figure("volume", failed.n, failed.mean, failed.interval)}


def tumour_kinds(slices: pd.DataFrame) -> dict[str, Booleans]:
    """Which rows are a small lesion, an edge slice, lack a sequence, or are tumour slices of none of these.

    `slices` has the columns of KEPT, each patient's in order, and an index of its own for every row.
    """
    pixels = slices[COUNTS].to_numpy(np.int64)
    true = pixels[:, 0] + pixels[:, 2]
    sick = slices["mask"].to_numpy() == 1
    tumours = slices[sick].groupby("patient_id", sort=False)
    edges = pd.concat([tumours.head(1), tumours.tail(1)]).index
    kinds = {
        "small_lesion": sick & (true < SMALL * pixels.sum(axis=1)),
        "edge_slice": sick & slices.index.isin(edges),
        "missing_sequence": sick & (slices["missing"].to_numpy() > 0),
    }
    kinds["plain_slice"] = sick & ~np.any(list(kinds.values()), axis=0)
    return kinds


def _of_kinds(
    slices: pd.DataFrame, owners: Integers, bootstrap: Bootstrap
) -> dict[str, dict[str, Average | Figure]]:
    """Dice and share missed of the kinds of tumour slices that CONVENTIONS names."""
    missed = (slices["has_mask"].to_numpy() != 1).astype(np.float64)
    found: dict[str, dict[str, Average | Figure]] = {}
    for name, kind in tumour_kinds(slices).items():
        lost = bootstrap.average(missed[kind], owners[kind], "tumour slice")
        found[name] = {
            "dice": bootstrap.average(_floats(slices["dice"])[kind], owners[kind], "tumour slice"),
            "missed": Figure(lost.unit, lost.n, lost.mean, lost.interval),
        }
    return found


def _ungated(slices: pd.DataFrame, owners: Integers) -> Ungated | None:
    if slices[["ungated_tp", "ungated_fp"]].isna().any(axis=None):
        return None
    shared = slices["ungated_tp"].to_numpy(np.int64)
    return Ungated(
        probability=_floats(slices["tumor_probability"]),
        sick=slices["mask"].to_numpy() == 1,
        owners=owners,
        shared=shared,
        found=shared + slices["ungated_fp"].to_numpy(np.int64),
        truth=slices["tp"].to_numpy(np.int64) + slices["fn"].to_numpy(np.int64),
    )


def _institutions(
    volumes: pd.DataFrame, seed: int, resamples: int
) -> dict[str, dict[str, float | int | None]]:
    """Means of the per-volume metrics at each institution, by name, and more of Dice."""
    found = {}
    for name, group in volumes.groupby("institution"):
        bootstrap = Bootstrap.of(len(group), seed, resamples)
        dice = bootstrap.average(_floats(group["dice"]), np.arange(len(group)), "volume")
        low, high = dice.interval or (None, None)
        found[str(name)] = {
            "volumes": len(group),
            "slices": int(group["slices"].sum()),
            **{metric: number(group[metric].mean()) for metric in OVERLAPS},
            "dice_median": dice.median,
            "dice_low": low,
            "dice_high": high,
        }
    return found


def _floats(column: pd.Series) -> Floats:
    return column.to_numpy(np.float64)
