"""Results as pictures, for people who look before they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.plots import draw as draw_gpu
from benchmarks.results import Result, Row
from benchmarks.tables import RATES

BLUE, GREEN, ORANGE, GREY, SKY = "#0072B2", "#009E73", "#E69F00", "#999999", "#56B4E9"
"""Okabe and Ito's, which colour-blind people tell apart."""
OURS: Final = BLUE
THEIRS: Final = GREY
_COLOURS: Final = dict(zip(RATES, (GREY, BLUE, SKY, GREEN, ORANGE), strict=True))


def draw(result: Result, path: Path) -> None:
    """Draw one benchmark's picture as SVG; the same result gives the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawers = {
        "throughput": _throughput,
        "peers": _peers,
        "host": _host,
        "scaling": _scaling,
        "gpu_check": draw_gpu,
        "cluster": _cluster,
        "requests": _requests,
    }
    with mpl.rc_context({"svg.hashsalt": "tumorscan", "font.size": 9, "axes.spines.right": False}):
        mpl.rcParams["axes.spines.top"] = False
        figure = Figure(figsize=(7.5, 3.4), layout="constrained")
        drawers[result.benchmark](figure, result)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _throughput(figure: Any, result: Result) -> None:
    axes = figure.add_subplot()
    precisions = list(dict.fromkeys(row.of["precision"] for row in result.rows if "rate" in row.of))
    width = 0.8 / len(RATES)
    for place, name in enumerate(RATES):
        rows = [next(iter(result.rows_of(precision=each, rate=name)), None) for each in precisions]
        _bars(axes, [i + place * width for i in range(len(precisions))], rows, width, _COLOURS[name], name)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(precisions))], precisions)
    axes.set_ylabel("slices a second")
    axes.legend(frameon=False, fontsize=8)


def _bars(
    axes: Any, places: list[float], rows: list[Row | None], width: float, colour: str, name: str
) -> None:
    pairs = [(place, row.series["rate"]) for place, row in zip(places, rows, strict=True) if row]
    if pairs:
        medians = [series.median for _, series in pairs]
        errors = [
            [series.median - min(series.values) for _, series in pairs],
            [max(series.values) - series.median for _, series in pairs],
        ]
        axes.bar([place for place, _ in pairs], medians, width, color=colour, label=name, yerr=errors)


def _peers(figure: Any, result: Result) -> None:
    axes = figure.add_subplot()
    figure.set_size_inches(7.5, 0.9 + 0.3 * len(result.rows))
    rows = sorted(result.rows, key=lambda row: row.median("rate") or 0.0)
    names = [f"{row.of['title']}, {row.of['precision']}" for row in rows]
    medians = [row.series["rate"].median for row in rows]
    colours = [OURS if row.of["program"] == "tumorscan" else THEIRS for row in rows]
    errors = [
        [row.series["rate"].median - min(row.series["rate"].values) for row in rows],
        [max(row.series["rate"].values) - row.series["rate"].median for row in rows],
    ]
    bars = axes.barh(names, medians, color=colours, xerr=errors)
    axes.bar_label(bars, fmt="%.1f", padding=6, fontsize=8)
    axes.set_xlabel("slices a second, from files to masks and table")


def _host(figure: Any, result: Result) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    rows = [row for row in result.rows if row.of["what"] == "pipeline"]
    cores = [int(row.of["cores"]) for row in rows]
    rates = [row.median("steady rate") or 0.0 for row in rows]
    left.plot(cores, rates, "o-", color=OURS, label="measured")
    left.plot(cores, [rates[0] * count / cores[0] for count in cores], "--", color=GREY, label="linear")
    left.set_xticks(cores)
    left.set(xlabel="cores", ylabel="slices a second, null models", ylim=(0, None))
    left.legend(frameon=False)
    stages = [row for row in result.rows if "stage" in row.of]
    stages.sort(key=lambda row: row.median("CPU") or 0.0)
    right.barh([row.of["stage"] for row in stages], [row.median("CPU") or 0.0 for row in stages], color=OURS)
    right.set_xlabel("CPU, us a slice")


def _cluster(figure: Any, result: Result) -> None:
    axes = figure.add_subplot()
    places = [row.of["on"] for row in result.rows]
    axes.barh(places, [row.median("rate") or 0.0 for row in result.rows])
    axes.set_xlabel("slices a second")


def _requests(figure: Any, result: Result) -> None:
    axes = figure.add_subplot()
    precisions = list(dict.fromkeys(row.of["precision"] for row in result.rows))
    ways = list(dict.fromkeys(row.of["way"] for row in result.rows))
    width = 0.8 / len(ways)
    for place, (way, colour) in enumerate(zip(ways, (BLUE, GREY, GREEN, ORANGE, SKY), strict=True)):
        rows = [next(iter(result.rows_of(precision=each, way=way)), None) for each in precisions]
        _bars(axes, [i + place * width for i in range(len(precisions))], rows, width, colour, way)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(precisions))], precisions)
    axes.set_ylabel("slices a second, runner only")
    axes.legend(frameon=False, fontsize=8)


def _scaling(figure: Any, result: Result) -> None:
    axes = figure.subplots(1, 3)
    rows = [row for row in result.rows if row.of["layout"] == "folders"]
    files = [int(row.of["files"]) for row in rows]
    shown = (
        ("steady rate", "slices a second"),
        ("peak memory", "peak memory, MB"),
        ("first result", "first result, s"),
    )
    for panel, (name, label) in zip(axes, shown, strict=True):
        panel.plot(files, [row.median(name) for row in rows], "o-", color=OURS)
        panel.set(xscale="log", xlabel="files", ylabel=label, ylim=(0, None))
