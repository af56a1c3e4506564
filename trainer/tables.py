"""Measures as tables: for a terminal, in Markdown for cards and reports, and as a bundle keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from engine.bundle import Metric
from trainer.measure import Measures
from trainer.metrics import Average, Figure

if TYPE_CHECKING:
    from rich.table import Table

ROWS = (
    ("volume", "dice", "Dice per volume"),
    ("volume", "iou", "IoU per volume"),
    ("volume", "sensitivity", "Pixel sensitivity per volume"),
    ("volume", "specificity", "Pixel specificity per volume"),
    ("volume", "failed", "Share of volumes below Dice 0.5"),
    ("tumour_slice", "dice", "Dice per tumour slice"),
    ("classifier", "auc", "AUC of tumor_probability, slices"),
    ("calibration", "error", "Expected calibration error, slices"),
    ("calibration", "likelihood", "Negative log likelihood, nats a slice"),
    ("gate", "sensitivity", "Sensitivity at the gate, slices"),
    ("gate", "specificity", "Specificity at the gate, slices"),
    ("gate", "passed", "Share of slices that pass the gate"),
    ("has_mask", "sensitivity", "Sensitivity of has_mask, slices"),
    ("has_mask", "specificity", "Specificity of has_mask, slices"),
    ("gating", "dice_lost", "Dice per volume lost to the gate"),
)
KINDS = {
    "plain_slice": "none of the kinds below",
    "small_lesion": "lesion on less than 0.5% of the slice",
    "edge_slice": "first or last tumour slice of its volume",
    "missing_sequence": "a missing sequence (FLAIR in its place)",
}


def terminal_table(found: Measures, title: str, notes: Iterable[str]) -> Table:
    """Metric, mean (or value), median, 95% interval; the notes and the confusions below."""
    from rich.table import Table
    from rich.text import Text

    confusions = [
        f"{name}: " + " ".join(f"{key} {count}" for key, count in counts.items())
        for name, counts in found.confusion.items()
    ]
    table = Table(title=Text(title), caption=Text("\n".join([", ".join(notes), *confusions])))
    table.add_column("metric")
    for heading in ("mean", "median", "95% interval"):
        table.add_column(heading, justify="right")
    for group, metrics in found.metrics.items():
        for name, metric in metrics.items():
            label = f"{group.replace('_', ' ')} {name.replace('_', ' ')} ({metric.n})"
            table.add_row(label, *_cells(metric))
        table.add_section()
    for name, means in found.institutions.items():
        label = f"volume dice at {name or 'no institution'} ({means['volumes']})"
        table.add_row(label, *_institution_cells(means))
    return table


def markdown_table(found: Measures) -> list[str]:
    """The lines of a table of ROWS, then Dice by institution."""
    lines = ["| metric | mean | median | 95% interval | n |", "| --- | --- | --- | --- | --- |"]
    for group, name, label in ROWS:
        metric = found.metrics.get(group, {}).get(name)
        if metric is not None:
            lines.append(f"| {label} | {' | '.join(_cells(metric))} | {metric.n} |")
    for name, means in found.institutions.items():
        label = f"Dice per volume at {name or 'no institution'}"
        lines.append(f"| {label} | {' | '.join(_institution_cells(means))} | {means['volumes']} |")
    return lines


def markdown_kinds(found: Measures) -> list[str]:
    """The lines of a table of the kinds of tumour slices, where there are any of them."""
    lines = [
        "| tumour slices with | Dice, mean | median | without a mask | n |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, label in KINDS.items():
        dice, missed = found.metrics[kind]["dice"], found.metrics[kind]["missed"]
        if dice.n and isinstance(dice, Average) and isinstance(missed, Figure):
            shown = (_shown(dice.mean), _shown(dice.median), _shown(missed.value))
            lines.append(f"| {label} | {' | '.join(shown)} | {dice.n} |")
    return lines


def markdown_trade_off(operating: pd.DataFrame) -> list[str]:
    """The lines of a table of gates."""
    lines = [
        "| gate | slices passed | sensitivity | 95% interval | Dice lost | 95% interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in operating.to_dict("records"):
        lines.append(
            f"| {row['gate']:g} | {row['passed']:.3f} | {_shown(row['sensitivity'])} | "
            f"{_between(row['sensitivity_low'], row['sensitivity_high'])} | {row['dice_lost']:.4f} | "
            f"{_between(row['dice_lost_low'], row['dice_lost_high'])} |"
        )
    return lines


def manifest_metrics(
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]], prefix: str
) -> dict[str, Metric]:
    """`metrics` as JSON has them, by prefix.group.name: the mean or the value, and of volumes the median."""
    kept = {}
    for group, members in metrics.items():
        for name, metric in members.items():
            value = metric["mean"] if "mean" in metric else metric["value"]
            if value is None:
                continue
            low, high = metric["interval"] or (None, None)
            kept[f"{prefix}.{group}.{name}"] = Metric(
                value=value, low=low, high=high, unit=metric["unit"], n=metric["n"]
            )
            if group == "volume" and metric.get("median") is not None:
                kept[f"{prefix}.{group}.{name}.median"] = Metric(
                    value=metric["median"], unit=metric["unit"], n=metric["n"]
                )
    return kept


def _cells(metric: Average | Figure) -> tuple[str, str, str]:
    value, median = (metric.mean, metric.median) if isinstance(metric, Average) else (metric.value, None)
    low, high = metric.interval or (None, None)
    return _shown(value), _shown(median), _between(low, high)


def _institution_cells(means: Mapping[str, float | int | None]) -> tuple[str, str, str]:
    return (
        _shown(means["dice"]),
        _shown(means["dice_median"]),
        _between(means["dice_low"], means["dice_high"]),
    )


def _between(low: float | None, high: float | None) -> str:
    return "" if pd.isna(low) or pd.isna(high) else f"{low:.3f} to {high:.3f}"


def _shown(value: float | None) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"
