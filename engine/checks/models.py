"""The bundle and the plans made from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from engine.bundle import Bundle
from engine.checks.finding import Facts, Finding
from engine.checks.gpu import gpus
from engine.checks.machine import look_at_disk
from engine.plans.cache import PlanCache, cache_folder
from engine.probes import Answer
from engine.text import shown


def look_at_bundle(bundle: Bundle) -> list[Finding]:
    """A bundle that loaded, and the parity that it records."""
    manifest = bundle.manifest
    precisions: Facts = {model: list(graphs) for model, graphs in manifest.models.items()}
    graphs = "; ".join(f"{model} {', '.join(files)}" for model, files in manifest.models.items())
    return [
        Finding(
            group="models",
            name="bundle",
            status="ok",
            value=f"{manifest.name} of {manifest.date} in {shown(bundle.folder)}, verified ({graphs})",
            facts={
                "name": manifest.name,
                "folder": shown(bundle.folder),
                "sha256": bundle.sha256,
                "precisions": precisions,
            },
        ),
        *(_look_at_parity(key, record) for key, record in manifest.parity.items()),
    ]


def _look_at_parity(key: str, record: Mapping[str, JsonValue]) -> Finding:
    holds = record.get("holds") is True
    figures = {
        "flips of has_mask": record.get("flip_fraction"),
        "Dice of masks": record.get("mask_dice"),
        "fall of Dice": record.get("dice_fall"),
    }
    said = [f"{name} {figure:.4g}" for name, figure in figures.items() if isinstance(figure, (int, float))]
    over = f" on {record['slices']} slices" if "slices" in record else ""
    return Finding(
        group="models",
        name=f"parity-{key}",
        status="ok" if holds else "warn",
        value=f"{key} {'holds' if holds else 'does not hold'}{over}: {', '.join(said) or 'no figures'}",
        facts={"key": key, "holds": holds},
    )


def look_at_plans(option: Path | None, driver: Answer) -> list[Finding]:
    """The plan cache, and the space where it is. Raises UsageError for one that is not to be trusted."""
    cache = PlanCache(cache_folder(option))
    entries = cache.plans()
    counts = Counter("damaged" if entry.plan is None else entry.plan.record.proof.status for entry in entries)
    size = sum(entry.size for entry in entries)
    said = ", ".join(f"{count} {what}" for what, count in counts.items())
    advice = "see what is wrong with tumorscan engines list" if counts["damaged"] else ""
    if not entries and gpus(driver):
        advice = "make them with tumorscan build"
    return [
        Finding(
            group="models",
            name="plans",
            status="warn" if counts["damaged"] else "ok" if entries else "missing",
            value=f"{f'{said}; {size / 1e6:,.1f} MB' if entries else 'none'} in {shown(cache.folder)}",
            advice=advice,
            facts={
                "folder": shown(cache.folder),
                "size": size,
                "count": len(entries),
                "status": dict(counts),
            },
        ),
        *look_at_disk("models", "disk-plans", cache.folder),
    ]
