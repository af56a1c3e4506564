"""Reads what `tumorscan score` wrote, and joins it with the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from engine.errors import UsageError
from trainer.dataset import slice_keys

RESULT_COLUMNS = ("image_path", "slice", "status", "tumor_probability", "has_mask", "mask_path")


@dataclass(frozen=True, slots=True)
class Join:
    """How results and truth met; an example is the first path of its kind, None where there is none."""

    on: str
    slices: int
    patients: int
    quarantined: int
    results_without_truth: int
    results_without_truth_example: str | None
    truth_without_results: int
    truth_without_results_example: str | None
    results_outside_part: int

    def notes(self) -> list[str]:
        """What people should know of it, a clause each."""
        asides = {
            "quarantined": self.quarantined,
            "results without truth": self.results_without_truth,
            "slices of the data without results": self.truth_without_results,
            "results outside the part": self.results_outside_part,
        }
        joined = f"{self.slices} slices of {self.patients} patients joined on {self.on}"
        return [joined, *(f"{count} {what}" for what, count in asides.items() if count)]


def join_results(results_dir: Path, truth: pd.DataFrame, wanted: pd.DataFrame) -> tuple[pd.DataFrame, Join]:
    """Results with truth, one row a slice of `wanted`, in its order."""
    results = _read_results(results_dir / "results.csv")
    truth = truth.assign(key=truth["image_path"])
    results = results.assign(key=results["image_path"])
    on = "image_path"
    if not results["key"].isin(truth["key"]).any():
        on = "patient folder/file name"
        truth = truth.assign(key=slice_keys(truth))
        results = results.assign(key=["/".join(path.split("/")[-2:]) for path in results["image_path"]])
    results.loc[results["slice"] != 0, "key"] = ""  # a later page: the truth of a file is that of its first
    keys = results.loc[results["key"] != "", "key"]
    if keys.duplicated().any():
        raise UsageError(
            f"{results_dir} holds {keys[keys.duplicated()].iloc[0]} more than once: score one tree at a time"
        )

    joined = truth.merge(results.drop(columns="image_path"), on="key", how="inner", validate="one_to_one")
    if joined.empty:
        raise UsageError(
            f"no slice of {results_dir} is in the data: results have {results['image_path'].iloc[0]}, "
            f"the data {truth['image_path'].iloc[0]}; patient folder and file name must be equal"
        )
    everywhere = len(joined)
    joined = joined[joined["image_path"].isin(wanted["image_path"])].reset_index(drop=True)
    if joined.empty:
        raise UsageError(
            f"{results_dir} has scored no slice of the part of the split: score it, or name another part"
        )
    no_truth = results.loc[~results["key"].isin(truth["key"]), "image_path"]
    no_result = wanted.loc[~wanted["image_path"].isin(joined["image_path"]), "image_path"]
    join = Join(
        on=on,
        slices=len(joined),
        patients=int(joined["patient_id"].nunique()),
        quarantined=int(joined["quarantined"].sum()),
        results_without_truth=len(no_truth),
        results_without_truth_example=None if no_truth.empty else str(no_truth.iloc[0]),
        truth_without_results=len(no_result),
        truth_without_results_example=None if no_result.empty else str(no_result.iloc[0]),
        results_outside_part=everywhere - len(joined),
    )
    return joined.drop(columns=["key", "slice"]), join


def _read_results(path: Path) -> pd.DataFrame:
    """image_path, slice, tumor_probability, has_mask, predicted_path and quarantined of every row."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; give the output folder of `tumorscan score`"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is not a table of results: {error}") from error
    missing = [name for name in RESULT_COLUMNS if name not in table]
    if missing:
        raise UsageError(f"{path} is not a table of results: it has no column {', '.join(missing)}")
    if table.empty:
        raise UsageError(f"{path} has no slices: nothing was scored into this folder yet")
    quarantined = table["status"] != "ok"
    numbers = table[["slice", "tumor_probability", "has_mask"]].apply(pd.to_numeric, errors="coerce")
    unreadable = numbers.isna().any(axis=1) & ~quarantined
    if unreadable.any():
        row = int(unreadable.to_numpy().argmax())
        raise UsageError(
            f"{path}, slice {row + 1}: {table['image_path'].iloc[row]} has a value that is no number"
        )
    numbers = numbers.fillna(0)
    has_mask = (numbers["has_mask"] == 1) & ~quarantined
    unwritten = has_mask & (table["mask_path"] == "")
    if unwritten.any():
        raise UsageError(f"{path} has masks that were not written: score with --masks png to evaluate them")
    return pd.DataFrame(
        {
            "image_path": table["image_path"],
            "slice": numbers["slice"].astype(np.int64),
            "tumor_probability": numbers["tumor_probability"].astype(np.float64).mask(quarantined, 0.0),
            "has_mask": has_mask.astype(np.int64),
            "predicted_path": [
                f"{path.parent}/{mask}" if marked else ""
                for mask, marked in zip(table["mask_path"], has_mask, strict=True)
            ],
            "quarantined": quarantined,
        }
    )
