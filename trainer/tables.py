"""Measures as tables: for a terminal, in Markdown for cards and reports, and as a bundle keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from engine.bundle import Metric
from trainer.failures import LABELS
from trainer.measure import FAILED, Measures
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
WORST = 5
"""Volumes that are named, from the lowest Dice up."""


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


def markdown_failures(volumes: pd.DataFrame, groups: pd.DataFrame) -> list[str]:
    """Lines that name the worst volumes, and a table of what `trainer.failures.failure_groups` gave."""
    failed = int((volumes["dice"] < FAILED).sum())
    named = ", ".join(
        f"{row['patient_id']} {row['dice']:.3f} (of {row['tumour_slices']} tumour slices, with a mask "
        f"{row['masked_slices']} of {row['slices']})"
        for row in volumes.nsmallest(WORST, "dice").to_dict("records")
    )
    lines = [
        f"Of {len(volumes)} volumes {failed} are below Dice {FAILED}. The lowest: {named}.",
        "",
        "| slices | Dice per volume lost | 95% interval | Dice per tumour slice | no mask | n | patients |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in groups.to_dict("records"):
        lines.append(
            f"| {LABELS.get(row['group'], row['group'])} | {_shown(row['lost'])} | "
            f"{_between(row['lost_low'], row['lost_high'])} | {_shown(row['dice'])} | "
            f"{_shown(row['missed'])} | {row['slices']} | {row['patients']} |"
        )
    return [
        *lines,
        "",
        "Lost: what the mean Dice per volume would gain if these slices were marked as they are true. The",
        "groups overlap, so these do not add up. No mask: the share of the group's tumour slices without it.",
    ]


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
