"""Reads what `tumorscan evaluate` wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from engine.errors import UsageError
from trainer.evaluate import EVALUATION_FORMAT
from trainer.measure import KEPT


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The evaluation.json of a folder. Raises UsageError where it has none of this version."""
    path = folder / "evaluation.json"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} holds no evaluation ({error}): give a folder that evaluate wrote"
        ) from error
    if not isinstance(content, dict) or content.get("format") != EVALUATION_FORMAT:
        raise UsageError(f"{path} is not of format {EVALUATION_FORMAT}: evaluate again")
    return content


def read_slices(folder: Path) -> pd.DataFrame:
    """The slices.csv of a folder. Raises UsageError where it has none of this version."""
    try:
        table = pd.read_csv(folder / "slices.csv", dtype={"patient_id": str}, keep_default_na=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} has no readable slices.csv ({error}): evaluate again") from error
    if lacking := [name for name in KEPT if name not in table]:
        raise UsageError(f"{folder}/slices.csv has no column {', '.join(lacking)}: evaluate again")
    return table.assign(institution=table["institution"].fillna("").astype(str))


def join_folds(folders: Sequence[Path], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """What `read_slices` gave of each folder, as one table. Raises UsageError for a patient in two of them.

    What not every folder knows, whether a slice passed or its ungated pixels, is then known of none.
    """
    owner: dict[str, Path] = {}
    for folder, table in zip(folders, tables, strict=True):
        for patient in table["patient_id"].unique():
            if patient in owner:
                raise UsageError(
                    f"{patient} was judged in {owner[patient]} and in {folder}: give folds of one split"
                )
            owner[patient] = folder
    slices = pd.concat(tables, ignore_index=True)
    for optional in ("passed", "ungated_tp", "ungated_fp"):
        if slices[optional].isna().any():
            slices[optional] = np.nan
    return slices


def names_apart(folders: Sequence[Path]) -> list[str]:
    """What tells the folders apart, without the path that they share."""
    if len(folders) == 1:
        return [folders[0].name]
    common = os.path.commonpath([folder.absolute() for folder in folders])
    return [os.path.relpath(folder.absolute(), common) for folder in folders]
