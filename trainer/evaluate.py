"""Holds the output of `tumorscan score` against true masks: per slice, per volume, and at the gate."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from engine.errors import MachineError, UsageError
from trainer.dataset import PARTS, Part, Split, institution_of, load_frame, read_mask
from trainer.joining import Join, join_results
from trainer.measure import CONVENTIONS, COUNTS, KEPT, PATHS, Measures, measure
from trainer.metrics import Booleans, Floats
from trainer.pictures import read_image

log = logging.getLogger(__name__)

EVALUATION_FORMAT = 2


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found.

    `measures.slices` has a row for each joined slice: image_path, mask_path, mask (0/1), patient_id,
    institution, tumor_probability, has_mask (0/1), predicted_path ("" where the prediction is empty),
    quarantined, passed (0/1, NaN without a gate), missing (channels that repeat the middle one), tp, fp, fn,
    tn (pixels), ungated_tp and ungated_fp (NaN where unknown) and the overlap metrics.
    """

    inputs: Mapping[str, str | int | None]
    join: Join
    gate_threshold: float | None
    measures: Measures

    def as_json(self) -> str:
        """Everything but the tables, in a fixed order; an undefined number is null."""
        content = {
            "format": EVALUATION_FORMAT,
            "inputs": self.inputs,
            "join": asdict(self.join),
            "gate_threshold": self.gate_threshold,
            **measures_as_json(self.measures),
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes evaluation.json, dice.csv, slices.csv and, where ungated masks are known, operating.csv.

        Raises MachineError where it cannot.
        """
        target = Path(folder)
        found = self.measures
        try:
            target.mkdir(parents=True, exist_ok=True)
            (target / "evaluation.json").write_text(self.as_json(), encoding="utf-8")
            found.volumes.to_csv(target / "dice.csv", index=False, lineterminator="\n")
            found.slices[[*KEPT, *PATHS]].to_csv(target / "slices.csv", index=False, lineterminator="\n")
            if found.operating is not None:
                found.operating.to_csv(target / "operating.csv", index=False, lineterminator="\n")
        except OSError as error:
            raise MachineError(f"cannot write the evaluation into {target}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Run:
    """What run.json says, None for what it does not; `flips` as "none" or "all, classifier too".

    `shard` is 3/16 where the slices are a part of the input only.
    """

    gated: bool | None
    gate: float | None
    bundle_sha256: str | None
    flips: str
    shard: str | None = None


def measures_as_json(found: Measures) -> dict[str, Any]:
    """The part that evaluations and cross-validations have in common."""
    return {
        "metrics": {
            group: {name: asdict(metric) for name, metric in metrics.items()}
            for group, metrics in found.metrics.items()
        },
        "confusion": found.confusion,
        "institutions": found.institutions,
        "reliability": [asdict(each) for each in found.reliability.bins],
        "bootstrap": {"unit": "patient", "level": 0.95, "resamples": found.resamples, "seed": found.seed},
        "conventions": CONVENTIONS,
    }


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

    `ungated` is a second output folder, of the same slices scored with --no-gate: what the gate costs, and
    what others would. `split` limits the evaluation to one `part` of a split file, "test" unless said
    otherwise. Masks are read pair by pair. `CONVENTIONS` says what every number means.

    Raises UsageError when results or data are missing or do not join, when a mask is missing or has another
    size than its truth, when `ungated` holds other slices, and for a part that is none, is empty or lacks its
    split.
    """
    if part is not None and (split is None or part not in PARTS):
        raise UsageError(f"--part {part}: give --split FILE with it, and one of {', '.join(PARTS)}")
    truth = load_frame(data_root)
    chosen = None if split is None else Split.load(split)
    wanted = truth if chosen is None else _part(chosen, part or "test", truth, split)
    folder = Path(results_dir)
    run = _run(folder)
    slices, join = join_results(folder, truth, wanted)
    slices = _with_pixels(slices)
    slices["institution"] = [institution_of(patient) for patient in slices["patient_id"]]
    slices["missing"] = [_channels_missing(path) for path in slices["image_path"]]
    slices["passed"] = np.nan if run.gate is None else _passed(slices, run.gate).astype(np.float64)
    slices[["ungated_tp", "ungated_fp"]] = np.nan
    if ungated is not None:
        free = _ungated(Path(ungated), truth, wanted, slices, run.flips)
        slices[["ungated_tp", "ungated_fp"]] = free[["tp", "fp"]].to_numpy()
    elif run.gated is False:
        slices[["ungated_tp", "ungated_fp"]] = slices[["tp", "fp"]].to_numpy()
    return Evaluation(
        inputs={
            "results": os.fspath(results_dir),
            "data": os.fspath(data_root),
            "ungated": None if ungated is None else os.fspath(ungated),
            "bundle_sha256": run.bundle_sha256,
            "flips": run.flips,
            "shard": run.shard,
            "split": None if split is None else os.fspath(split),
            "split_sha256": None if chosen is None else chosen.sha256,
            "split_kind": None if chosen is None else chosen.kind,
            "split_size": None if chosen is None else sum(len(chosen.names(cast("Part", p))) for p in PARTS),
            "part": None if chosen is None else part or "test",
        },
        join=join,
        gate_threshold=run.gate,
        measures=measure(slices, seed, resamples, run.gate),
    )


def _part(split: Split, part: str, truth: pd.DataFrame, path: object) -> pd.DataFrame:
    if not split.names(cast("Part", part)):
        filled = ", ".join(name for name in PARTS if split.names(cast("Part", name)))
        raise UsageError(f"{path} has nobody in its {part} part: judge another with --part ({filled})")
    return split.select(truth, cast("Part", part), allow_unknown=True)


def _with_pixels(slices: pd.DataFrame) -> pd.DataFrame:
    """Adds tp, fp, fn and tn, reading one pair of masks after the other."""
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
    slices = slices.copy()
    slices[COUNTS] = counts
    return slices


def _channels_missing(path: str) -> int:
    """How many channels repeat the middle one: the LGG set puts FLAIR in the place of what is missing."""
    image = read_image(path)
    return sum(np.array_equal(image[..., channel], image[..., 1]) for channel in (0, 2))


def _ungated(
    results_dir: Path, truth: pd.DataFrame, wanted: pd.DataFrame, gated: pd.DataFrame, flips: str
) -> pd.DataFrame:
    run = _run(results_dir)
    if run.gated:
        raise UsageError(f"{results_dir} was scored with a gate: score it again with --no-gate for --ungated")
    if run.flips != flips:
        raise UsageError(
            f"{results_dir} was scored with --flips {run.flips}, the other results with {flips}: "
            "score both alike"
        )
    slices, _ = join_results(results_dir, truth, wanted)
    if list(slices["image_path"]) != list(gated["image_path"]):
        odd = sorted(set(slices["image_path"]) ^ set(gated["image_path"]))
        raise UsageError(
            f"{results_dir} holds other slices than the results it is compared with: "
            f"{len(odd)} are in one of them only, the first is {odd[0]}"
        )
    return _with_pixels(slices)


def _run(results_dir: Path) -> _Run:
    path = results_dir / "run.json"
    try:
        content = json.loads(path.read_bytes())
        point = content["operating_point"]
        gated, gate = bool(point["gate"]), float(point["gate_threshold"])
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s names no gate threshold: the confusion at the gate is left out", path)
        return _Run(None, None, None, "none")
    bundle = content.get("bundle")
    sha256 = bundle.get("sha256") if isinstance(bundle, dict) else None
    if not gated:
        log.info("%s was scored without a gate: the confusion at the gate is left out", results_dir)
    flips = str(point.get("flips", "none")) + (", classifier too" if point.get("flip_classifier") else "")
    shard = content.get("shard")
    if shard is not None:
        log.warning(
            "%s is shard %s, a part of its input only: merge all shards (tumorscan merge) to judge the whole",
            results_dir,
            shard,
        )
    return _Run(gated, gate if gated else None, sha256, flips, shard)


def _passed(slices: pd.DataFrame, gate: float) -> Booleans:
    # results.csv rounds to six digits: an unrounded gate would shut out a slice that had just passed it.
    probabilities: Floats = slices["tumor_probability"].to_numpy(np.float64)
    return probabilities >= float(f"{gate:.6g}")
