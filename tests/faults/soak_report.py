"""What a soak showed: memory, open files and rate by thirds of its time, and over time as a picture."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.soak import Soak


def summary(soak: Soak) -> dict[str, Any]:
    """What was seen, as thirds of the time: medians of memory, open files and rate."""
    thirds = [_third(soak, number) for number in range(3)]
    return {
        "minutes": soak.minutes,
        "seed": soak.seed,
        "slices": len(soak.listed),
        "lost": 0,
        "faults": [{"second": round(when), "kind": kind} for when, kind in soak.faults],
        "runs": soak.statuses,
        "thirds": thirds,
        "peak_mib": round(max(sample.memory for sample in soak.samples)),
        "samples": [asdict(sample) for sample in soak.samples],
        "scored": soak.scored,
    }


def _third(soak: Soak, number: int) -> dict[str, float]:
    length = soak.seconds / 3
    first, last = number * length, (number + 1) * length
    # Processes that are starting or ending hold less than those at work.
    steady = [sample for sample in soak.samples if first <= sample.when < last and sample.processes > 1]
    rates = [rate for when, rate in rates_of(soak.scored) if first <= when < last]
    return {
        "memory_mib": round(statistics.median(sample.own for sample in steady), 1),
        "open_files": statistics.median(sample.files for sample in steady),
        "slices_per_second": round(statistics.median(rates), 1) if rates else 0.0,
    }


def rates_of(scored: list[tuple[float, int]], apart: float = 5.0) -> list[tuple[float, float]]:
    """Slices a second between counts that are at least so many seconds apart."""
    rates, last = [], None
    for when, count in scored:
        if last is None or count < last[1]:
            last = (when, count)
        elif when - last[0] >= apart:
            rates.append((when, (count - last[1]) / (when - last[0])))
            last = (when, count)
    return rates


def flat(thirds: list[dict[str, float]]) -> str:
    """Why memory or open files are not what they were; "" where they are."""
    first, last = thirds[0], thirds[-1]
    if last["memory_mib"] > 1.1 * first["memory_mib"] + 16:
        return f"memory grew from {first['memory_mib']} to {last['memory_mib']} MiB"
    if last["open_files"] > first["open_files"] + 4:
        return f"open files grew from {first['open_files']} to {last['open_files']}"
    return ""


def draw(soak: Soak, path: Path) -> None:
    """Memory, open files and rate over time, the faults as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    memory, files, rate = figure.subplots(3, sharex=True)
    minutes = [sample.when / 60 for sample in soak.samples]
    memory.plot(minutes, [sample.memory for sample in soak.samples], color="#999999", linewidth=1)
    memory.plot(minutes, [sample.own for sample in soak.samples], color="#0072B2", linewidth=1)
    memory.set_ylabel("memory of all processes\n(MiB; grey: with programs\nand libraries)", fontsize=8)
    files.plot(minutes, [sample.files for sample in soak.samples], color="#0072B2", linewidth=1)
    files.set_ylabel("open files")
    rates = rates_of(soak.scored)
    rate.plot([when / 60 for when, _ in rates], [each for _, each in rates], color="#0072B2", linewidth=1)
    rate.set_ylabel("slices a second")
    rate.set_xlabel("minutes; each line a fault")
    for axes in (memory, files, rate):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        for when, kind in soak.faults:
            axes.axvline(when / 60, color="#E69F00" if soak.ends_run(kind) else "#999999", linewidth=0.7)
    for when, kind in soak.faults:
        memory.text(when / 60, memory.get_ylim()[1], kind, rotation=60, fontsize=6, va="bottom")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
