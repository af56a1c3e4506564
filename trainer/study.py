"""Pools the evaluations of several folds: every patient judged once, by a model that never saw it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from engine.errors import MachineError, UsageError
from trainer.evaluate import measures_as_json
from trainer.failures import failure_groups
from trainer.judged import join_folds, names_apart, read_evaluation, read_slices
from trainer.measure import Measures, measure
from trainer.tables import markdown_failures, markdown_table, markdown_trade_off

POOL_FILE = "cross-validated.json"
_POOL_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Fold:
    """One evaluated fold; `gate` and `bundle_sha256` are None where its run did not tell."""

    name: str
    patients: int
    slices: int
    dice: float
    dice_median: float
    gate: float | None
    split_sha256: str
    bundle_sha256: str | None


@dataclass(frozen=True, slots=True)
class Pool:
    """Several folds taken together.

    `of_patients` is how many their splits hold, `flips` what all were scored with, `groups` is of
    `failure_groups`.
    """

    folds: tuple[Fold, ...]
    of_patients: int
    flips: str
    measures: Measures
    groups: pd.DataFrame

    @property
    def patients(self) -> int:
        """How many were judged."""
        return len(self.measures.volumes)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes cross-validated.json and .md, dice.csv and, where gates can be compared, operating.csv.

        Raises MachineError where it cannot.
        """
        target = Path(folder)
        content = {
            "format": _POOL_FORMAT,
            "folds": [asdict(fold) for fold in self.folds],
            "patients": self.patients,
            "of_patients": self.of_patients,
            "slices": len(self.measures.slices),
            "flips": self.flips,
            **measures_as_json(self.measures),
            "markdown": self.as_markdown(),
            "failures": markdown_failures(self.measures.volumes, self.groups),
        }
        try:
            target.mkdir(parents=True, exist_ok=True)
            (target / POOL_FILE).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
            tables = [*self.as_markdown(), "", *markdown_failures(self.measures.volumes, self.groups)]
            (target / POOL_FILE).with_suffix(".md").write_text("\n".join(tables) + "\n")
            self.measures.volumes.to_csv(target / "dice.csv", index=False, lineterminator="\n")
            if self.measures.operating is not None:
                self.measures.operating.to_csv(target / "operating.csv", index=False, lineterminator="\n")
        except OSError as error:
            raise MachineError(f"cannot write the pooled folds into {target}: {error.strerror}") from error

    def as_markdown(self) -> list[str]:
        """The lines of the tables: all folds together, each fold, gates; failures stand apart."""
        folds = [
            "| fold | patients | slices | gate | Dice, mean | median |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        folds += [
            f"| {fold.name} | {fold.patients} | {fold.slices} | "
            f"{'none' if fold.gate is None else format(fold.gate, 'g')} | "
            f"{fold.dice:.3f} | {fold.dice_median:.3f} |"
            for fold in self.folds
        ]
        lines = [*markdown_table(self.measures), "", *folds]
        table = self.measures.operating
        if table is not None:
            lines += ["", *markdown_trade_off(table[table["gate"].isin(np.round(np.arange(0, 1, 0.1), 2))])]
        return lines


class CrossValidated(BaseModel):
    """What a bundle keeps of a cross-validated.json; its further keys are for people."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    folds: tuple[Fold, ...]
    patients: int
    of_patients: int
    slices: int
    flips: str = "none"
    metrics: dict[str, dict[str, dict[str, Any]]]
    markdown: tuple[str, ...]
    failures: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> CrossValidated:
        """Read what `Pool.save` wrote. Raises UsageError for a file that is missing or is none."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(
                f"cannot read {path}: {error.strerror}; give the file that `tumorscan pool` wrote"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise UsageError(f"{path} is no {POOL_FILE} ({what}): pool the folds again") from error

    def record(self) -> dict[str, JsonValue]:
        """What stands in bundle.json of where the cross-validated metrics come from."""
        return {
            "patients": self.patients,
            "of_patients": self.of_patients,
            "slices": self.slices,
            "flips": self.flips,
            "folds": [asdict(fold) for fold in self.folds],
        }


def pool(evaluations: Sequence[Path], seed: int = 0, resamples: int = 2000) -> Pool:
    """Take folders that `Evaluation.save` wrote, each of one fold's test part, and measure all slices anew.

    Raises:
        UsageError: a folder without an evaluation of a test part of patients, a patient in two of them,
            splits of different patients, or results of different flips.
    """
    if not evaluations:
        raise UsageError(
            "no folds: give the folders that `tumorscan evaluate --split FILE` wrote, one a fold"
        )
    contents = [_of_a_fold(folder) for folder in evaluations]
    tables = [read_slices(folder) for folder in evaluations]
    sizes = {int(content["inputs"]["split_size"]) for content in contents}
    if len(sizes) > 1:
        raise UsageError(
            f"the splits hold {' and '.join(map(str, sorted(sizes)))} patients: give folds of one set"
        )
    flips = {str(content["inputs"].get("flips") or "none") for content in contents}
    if len(flips) > 1:
        raise UsageError(f"folds were scored with --flips {' and '.join(sorted(flips))}: score them alike")
    slices = join_folds(evaluations, tables)
    folds = tuple(_fold(*given) for given in zip(names_apart(evaluations), contents, tables, strict=True))
    groups = failure_groups(slices, seed, resamples)
    return Pool(folds, sizes.pop(), flips.pop(), measure(slices, seed, resamples), groups)


def _of_a_fold(folder: Path) -> dict[str, Any]:
    content = read_evaluation(folder)
    inputs = content["inputs"]
    if inputs["part"] != "test" or inputs["split_kind"] != "patient":
        raise UsageError(
            f"{folder} was not judged on the test part of a split by patient: evaluate it with --split FILE"
        )
    return content


def _fold(name: str, content: dict[str, Any], table: pd.DataFrame) -> Fold:
    dice = content["metrics"]["volume"]["dice"]
    return Fold(
        name=name,
        patients=int(table["patient_id"].nunique()),
        slices=len(table),
        dice=dice["mean"],
        dice_median=dice["median"],
        gate=content["gate_threshold"],
        split_sha256=content["inputs"]["split_sha256"],
        bundle_sha256=content["inputs"]["bundle_sha256"],
    )
