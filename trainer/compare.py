"""What a change brought: evaluated runs beside a baseline, on the same patients, and what they took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from engine.errors import UsageError
from trainer.judged import read_evaluation
from trainer.metrics import Bootstrap
from trainer.study import POOL_FILE, CrossValidated

RESAMPLES = 2000
_REQUESTED = ("weights", "extra", "limit", "seed", "precision")
"""What config.json holds of a training besides its recipe and who was trained on."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One training: its recipe by name of field, and its cost; None where its folder does not tell."""

    kind: str
    recipe: Mapping[str, Any]
    steps: int | None
    cpu_hours: float | None

    @classmethod
    def read(cls, run: Path) -> Trained:
        """Of a finished run folder; UsageError for another."""
        try:
            config = json.loads((run / "config.json").read_bytes())
            metrics = json.loads((run / "metrics.json").read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"{run} is no finished run of `tumorscan train` ({error})") from error
        recipe = dict(config["preset"])
        augmentation = recipe.pop("augmentation") or {}
        recipe |= {f"augmentation.{name}": value for name, value in augmentation.items()}
        recipe |= {name: config.get(name) for name in _REQUESTED}
        return cls(config["kind"], recipe, metrics.get("steps"), _cpu_hours(run))


@dataclass(frozen=True, slots=True)
class Row:
    """An evaluation, or a pool of them, and the trainings behind it. `volumes` is its table, by patient."""

    name: str
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]
    flips: str
    volumes: pd.DataFrame
    runs: tuple[Trained, ...]

    @classmethod
    def read(cls, text: str) -> Row:
        """A row as typed: [NAME=]JUDGED[,RUN...], what evaluate or pool wrote and the run folders behind it.

        Raises UsageError for folders that are neither.
        """
        name, _, paths = text.rpartition("=")
        judged, *runs = (Path(path) for path in paths.split(","))
        if (judged / POOL_FILE).is_file():
            pooled = CrossValidated.load(judged / POOL_FILE)
            metrics, flips = pooled.metrics, pooled.flips
        else:
            content = read_evaluation(judged)
            metrics, flips = content["metrics"], content["inputs"].get("flips") or "none"
        try:
            volumes = pd.read_csv(judged / "dice.csv", dtype={"patient_id": str}).set_index("patient_id")
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{judged} has no readable dice.csv ({error}): evaluate again") from error
        return cls(name or judged.name, metrics, flips, volumes, tuple(map(Trained.read, runs)))


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean Dice per volume less the baseline's, with its 95% interval.

    `paired`: of the same patients, one by one. Otherwise each side draws patients of its own.
    """

    mean: float
    interval: tuple[float, float] | None
    paired: bool


def compare(rows: Sequence[Row], seed: int = 0) -> list[str]:
    """The lines of a table in Markdown: the first row is the baseline of all others.

    Raises UsageError where rows were judged on other slices of the same patients.
    """
    lines = [
        "| what | Dice per volume, mean (median) | 95% interval | against the first | without the gate | "
        "against the first | Dice per tumour slice | slice AUC | steps | CPU hours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        _expect_the_same_slices(rows[0], row)
        dice = row.metrics["volume"]["dice"]
        cells = [
            "; ".join([row.name, *changes(rows[0], row)]),
            f"{dice['mean']:.3f} ({dice['median']:.3f})",
            _between(dice["interval"]),
            *_against(rows[0], row, "dice", seed)[1:],
            *_against(rows[0], row, "dice_ungated", seed),
            _mean(row.metrics["tumour_slice"]["dice"]["mean"]),
            _mean(row.metrics["classifier"]["auc"]["value"]),
            _summed([run.steps for run in row.runs], ",d"),
            _summed([run.cpu_hours for run in row.runs], ".2f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def changes(base: Row, row: Row) -> list[str]:
    """What the row's trainings and its scoring did otherwise: "segmenter ema 0 (0.99)"."""
    found = []
    for kind in ("segmenter", "classifier"):
        was, now = ([run.recipe for run in each.runs if run.kind == kind] for each in (base, row))
        if was and now:
            found += [f"{kind} {text}" for text in _differing(was[0], now[0])]
    if row.flips != base.flips:
        found.append(f"flips {row.flips} ({base.flips})")
    return found


def difference(base: pd.Series, other: pd.Series, seed: int = 0) -> Difference:
    """`other` less `base`, Dice by patient, at least one each."""
    mean = float(other.mean() - base.mean())
    if set(base.index) == set(other.index):
        each = (other.reindex(base.index) - base).to_numpy(np.float64)
        found = Bootstrap.of(len(each), seed, RESAMPLES).average(each, np.arange(len(each)), "volume")
        return Difference(mean, found.interval, paired=True)
    bootstraps = [Bootstrap.of(len(side), seed + i, RESAMPLES) for i, side in enumerate((base, other))]
    below, above = (
        bootstrap.weights @ side.to_numpy(np.float64) / len(side)
        for bootstrap, side in zip(bootstraps, (base, other), strict=True)
    )
    fewest = min(bootstraps, key=lambda bootstrap: bootstrap.weights.shape[1])
    return Difference(mean, fewest.interval(above - below), paired=False)


def _against(base: Row, row: Row, column: str, seed: int) -> tuple[str, str]:
    """Mean of a column of dice.csv and its difference to the baseline's; "" where it is not known."""
    known = [column in each.volumes and each.volumes[column].notna().all() for each in (base, row)]
    mean = f"{row.volumes[column].mean():.3f}" if known[1] else ""
    if row is base or not all(known):
        return mean, ""
    found = difference(base.volumes[column], row.volumes[column], seed)
    interval = f" ({_between(found.interval)})" if found.interval else ""
    return mean, f"{found.mean:+.3f}{interval}{'' if found.paired else ', other patients'}"


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if was["name"] != now["name"]:
        return [f"preset {now['name']} ({was['name']})"]
    names = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    return [f"{name} {_told(now.get(name))} ({_told(was.get(name))})" for name in names]


def _expect_the_same_slices(base: Row, row: Row) -> None:
    """Of the same patients all the same; other patients may have been judged."""
    patients = base.volumes.index
    if set(patients) == set(row.volumes.index) and not _truth(base, patients).equals(_truth(row, patients)):
        raise UsageError(
            f"{base.name} and {row.name} were judged on other slices of the same patients: "
            "evaluate both on the same part of one split"
        )


def _truth(row: Row, patients: pd.Index) -> pd.DataFrame:
    volumes = row.volumes.loc[patients]
    return pd.DataFrame({"slices": volumes["slices"], "true": volumes["tp"] + volumes["fn"]})


def _cpu_hours(run: Path) -> float | None:
    try:
        history = pd.read_csv(run / "history.csv")
    except (OSError, ValueError):
        return None
    return float(history["cpu_seconds"].sum()) / 3600 if "cpu_seconds" in history else None


def _between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _mean(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _summed(values: Sequence[float | None], shape: str) -> str:
    known = [value for value in values if value is not None]
    return format(sum(known), shape) if known and len(known) == len(values) else ""


def _told(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
