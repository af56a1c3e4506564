"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.results import Result, Row

RATES = ("bound", "runner only", "from RAM", "disk to disk", "disk to disk, cold")
_NAMED_PACKAGES = ("openvino", "onnxruntime", "tensorflow", "keras", "torch", "ray", "monai")


def machine_line(result: Result) -> str:
    """The machine, what it was doing, what was measured and how often."""
    machine = result.machine
    virtual = ", virtual" if machine.virtual else ""
    gpus = f", {', '.join(machine.gpus)}" if machine.gpus else ""
    versions = [f"{name} {machine.packages[name]}" for name in _NAMED_PACKAGES if name in machine.packages]
    return (
        f"{machine.cpu}, {machine.logical_cores} cores{virtual}, governor {machine.governor}{gpus}; load "
        f"{machine.load_before:.1f} before and {machine.load_after:.1f} after; {', '.join(versions)}; "
        f"{result.data.files:,} files ({result.data.bytes / 1e6:,.0f} MB) of {result.data.name}; "
        f"tumorscan {result.tumorscan} ({result.revision}); medians of {result.settings['repeats']} "
        f"interleaved repeats, {result.started:%Y-%m-%d}."
    )


def throughput(result: Result) -> str:
    """A row a precision, slices a second; in brackets the share of the bound, or of runner only."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in result.rows:
        if "rate" in row.of:
            found.setdefault((row.of["backend"], row.of["precision"]), {})[row.of["rate"]] = row
    lines = []
    for (backend, precision), rows in found.items():
        name = precision if backend == "openvino" else f"{precision}, {backend}"
        lines.append([name, *(_rate_cell(rows.get(rate)) for rate in RATES)])
    shares = {"runner only": "runner only (of the bound)", "from RAM": "from RAM (of runner only)"}
    return _table(["precision", *(shares.get(rate, rate) for rate in RATES)], lines)


def cpu_by_stage(result: Result) -> str:
    """A row a stage, a column a precision or number of cores; "" where it was not looked at."""
    rows = [row for row in result.rows if "stage" in row.of]
    if not rows:
        return ""
    kinds = list(dict.fromkeys(map(_kind, rows)))
    lines = []
    for stage in dict.fromkeys(row.of["stage"] for row in rows):
        spent = {_kind(row): row.median("CPU") for row in rows if row.of["stage"] == stage}
        lines.append([stage, *(_number(spent.get(kind)) for kind in kinds)])
    return _table([f"CPU time, {rows[0].series['CPU'].unit}", *kinds], lines)


def peers(result: Result) -> str:
    """A row a program and precision, fastest first, and how much faster tumorscan is at that precision."""
    ours = {row.of["precision"]: row for row in result.rows if row.of["title"] == "tumorscan"}
    lines = []
    for row in sorted(result.rows, key=lambda row: -(row.median("rate") or 0.0)):
        title, precision, series = row.of["title"], row.of["precision"], row.series["rate"]
        times = ours[precision].median(f"times {title} ({precision})") if precision in ours else None
        spread = f"{_number(min(series.values))} to {_number(max(series.values))}"
        lines.append([title, precision, _number(series.median), spread, _number(times)])
    return _table(["program", "precision", "slices a second", "least to most", "tumorscan, times it"], lines)


def peers_in_float32(result: Result) -> str:
    """A row a precision of tumorscan: how many times it is each program in float32; "" without programs."""
    others = {
        f"times {row.of['title']} (fp32)": row.of["title"]
        for row in result.rows
        if row.of["precision"] == "fp32" and row.of["program"] != "tumorscan"
    }
    lines = [
        [row.of["precision"], *(_number(row.median(name)) for name in others)]
        for row in result.rows
        if row.of["title"] == "tumorscan"
    ]
    return _table(["tumorscan at", *(f"times {title}" for title in others.values())], lines) if others else ""


def host_pipeline(result: Result) -> str:
    """A row a number of cores."""
    names = ("rate", "steady rate", "steady rate a core")
    rows = [row for row in result.rows if row.of["what"] == "pipeline"]
    lines = [[row.of["cores"], *(_number(row.median(name)) for name in names)] for row in rows]
    return _table(["cores", "slices a second", "of the middle half", "a core"], lines)


def host_parts(result: Result) -> str:
    """A row a part of the host's work."""
    rows = [row for row in result.rows if row.of["what"] == "part"]
    lines = [[row.of["part"], _number(row.median("rate")), _number(row.median("CPU"))] for row in rows]
    return _table(["part, alone on one core", "a second", "CPU, us a slice"], lines)


def scaling(result: Result) -> str:
    """A row a tree of files."""
    names = {
        "slices a second (of the middle half)": "steady rate",
        "first result, s": "first result",
        "with the models, s": "first result, real models",
        "peak memory, MB": "peak memory",
        "results.csv, s": "results.csv",
        "all tables, s": "all tables",
        "resume, s": "resume: first new result",
    }
    lines = []
    for row in result.rows:
        cells = [_number(row.median(name)) for name in names.values()]
        lines.append([f"{int(row.of['files']):,}", row.of["layout"], *cells])
    return _table(["files", "layout", *names], lines)


def cluster(result: Result) -> str:
    """A row a place where the same slices were scored."""
    names = {
        "slices a second": "rate",
        "of the rate alone": "of the rate alone",
        "start-up, s": "start-up",
        "whole command, s": "whole command",
    }
    lines = [[row.of["on"], *(_number(row.median(name)) for name in names.values())] for row in result.rows]
    return _table(["on", *names], lines)


def requests(result: Result) -> str:
    """A row a way, a column a precision; in brackets its share of the pool's rate."""
    precisions = list(dict.fromkeys(row.of["precision"] for row in result.rows))
    lines = []
    for way in dict.fromkeys(row.of["way"] for row in result.rows):
        cells = {row.of["precision"]: row for row in result.rows if row.of["way"] == way}
        lines.append([way, *(_share_of_pool(cells.get(precision)) for precision in precisions)])
    return _table(["runner only, slices a second (of the pool)", *precisions], lines)


def notes(result: Result) -> str:
    """What was left out, and why."""
    return "\n".join(f"- {note}" for note in result.notes)


def _rate_cell(row: Row | None) -> str:
    if row is None:
        return ""
    share = row.median("of the bound" if row.of["rate"] == "runner only" else "of runner only")
    return _number(row.median("rate")) + ("" if share is None else f" ({share:.2f})")


def _share_of_pool(row: Row | None) -> str:
    return "" if row is None else f"{_number(row.median('rate'))} ({row.median('of the pool'):.2f})"


def _kind(row: Row) -> str:
    return row.of["precision"] if "precision" in row.of else f"{row.of['cores']} cores"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
