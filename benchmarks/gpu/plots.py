"""What gpu_check found, as a picture: the rates, the lanes, the batches, the decode workers."""

from __future__ import annotations

from typing import Any, Final

from benchmarks.gpu.models import RUNTIMES
from benchmarks.gpu.settings import PACE
from benchmarks.gpu.tables import RATES
from benchmarks.results import Result, Row

_COLOURS: Final = ("#0072B2", "#009E73", "#E69F00", "#999999", "#56B4E9")
"""Okabe and Ito's, which colour-blind people tell apart."""


def draw(figure: Any, result: Result) -> None:
    """Four panels; one without figures stays empty."""
    figure.set_size_inches(7.5, 6.4)
    (rates, lanes), (batches, workers) = figure.subplots(2, 2)
    _draw_rates(rates, result)
    _lines(lanes, result.rows_of(section="scaling", by="lanes"), "lanes", "rate", "into the lanes")
    for name in ("classifier", "segmenter"):
        _lines(batches, result.rows_of(section="scaling", by="batch"), "batch", name, f"{name} alone")
    _lines(workers, result.rows_of(section="scaling", by="decode workers"), "workers", "rate", "decoded")
    for panel, label in ((lanes, "lanes"), (batches, "batch"), (workers, "decode workers")):
        panel.set(xlabel=label, ylabel="slices a second", ylim=(0, None))
        if panel.lines:
            panel.legend(frameon=False, fontsize=7)


def _draw_rates(panel: Any, result: Result) -> None:
    rows = [row for row in result.rows_of(section="rates") if "rate" in row.of]
    runtimes = list(dict.fromkeys(row.of["runtime"] for row in rows))
    width = 0.8 / len(RATES)
    for place, name in enumerate(RATES):
        found = {row.of["runtime"]: row.median("rate") or 0.0 for row in rows if row.of["rate"] == name}
        heights = [found.get(runtime, 0.0) for runtime in runtimes]
        places = [number + place * width for number in range(len(runtimes))]
        panel.bar(places, heights, width, color=_COLOURS[place], label=name)
    if "paced" in runtimes:
        panel.axhline(PACE, color=_COLOURS[3], linestyle="--", linewidth=1)
    titles = [RUNTIMES[each].title.replace(", ", "\n") for each in RUNTIMES if each in runtimes]
    panel.set_xticks([number + 0.4 - width / 2 for number in range(len(runtimes))], titles, fontsize=6)
    panel.set(ylabel="slices a second", ylim=(0, None))
    if runtimes:
        panel.legend(frameon=False, fontsize=7)


def _lines(panel: Any, rows: list[Row], along: str, name: str, label: str) -> None:
    """A line a runtime."""
    for runtime in dict.fromkeys(row.of.get("runtime", "") for row in rows):
        mine = [row for row in rows if row.of.get("runtime", "") == runtime and name in row.series]
        title = f"{label}, {runtime}" if runtime else label
        panel.plot(
            [int(row.of[along]) for row in mine], [row.median(name) for row in mine], "o-", label=title
        )
