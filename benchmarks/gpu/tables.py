"""What gpu_check found, as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.gpu.models import RUNTIMES
from benchmarks.results import Result, Row

RATES: Final = ("runner only", "into the lanes", "from RAM", "disk to disk")


def tables(result: Result) -> list[str]:
    """Each that has anything in it, with its heading."""
    made = ((title, make(result)) for title, make in _TABLES.items())
    return [f"**{title}**\n\n{table}" for title, table in made if table]


def _rates(result: Result) -> str:
    lines = []
    for runtime in _values(result, "runtime", section="rates"):
        rows = {
            row.of["rate"]: row
            for row in result.rows_of(section="rates", runtime=runtime)
            if "rate" in row.of
        }
        lines.append([_title(runtime), *(_share(rows.get(rate), "of runner only") for rate in RATES)])
    return _table(["slices a second (of runner only)", *RATES], lines)


def _models(result: Result) -> str:
    lines = []
    for runtime in _values(result, "runtime", section="models"):
        row = {each.of["model"]: each for each in result.rows_of(section="models", runtime=runtime)}
        cells = [
            _share(row.get(model), "of the matrix rate") for model in ("classifier", "segmenter", "both")
        ]
        lines.append([_title(runtime), *cells])
    lines += [
        [tool, *(_rate(row) if model == column else "" for column in ("classifier", "segmenter", "both"))]
        for row in result.rows_of(section="tools")
        for tool, model in [(row.of["tool"], row.of["model"])]
    ]
    return _table(
        ["alone, slices a second (of the matrix rate)", "classifier", "segmenter", "both, 35% passing"], lines
    )


def _parity(result: Result) -> str:
    names = ("slices", "probability error", "has_mask flips", "masks of both", "mask Dice")
    rows = result.rows_of(section="parity")
    lines = [
        [_title(r.of["runtime"]), *(_number(r.median(n)) for n in names), r.of["standing"]] for r in rows
    ]
    return _table(["beside float32", *names, "standing"], lines)


def _chip(result: Result) -> str:
    lines = []
    for row in result.rows_of(section="chip"):
        name = row.of.get("copy") or f"float16 matrix product, {row.of['matrix product']}"
        lines.append([name, _rate(row), row.series["rate"].unit])
    return _table(["the chip", "rate", ""], lines)


def _overlap(result: Result) -> str:
    lines = []
    for row in result.rows_of(section="overlap"):
        where = f"{_title(row.of['runtime'])}, {row.of['what']}"
        where += f", {row.of['lanes']} lanes" if "lanes" in row.of else ""
        shares = [
            f"{name} {_number(series.median)}" for name, series in row.series.items() if series.unit == "1"
        ]
        lines.append([where, "; ".join(shares)])
    return _table(["copies and computing at once", "shares"], lines)


def _lanes(result: Result) -> str:
    return _by(result, "lanes", "lanes", ("rate",))


def _batches(result: Result) -> str:
    return _by(result, "batch", "batch", ("classifier", "segmenter"))


def _workers(result: Result) -> str:
    rows = result.rows_of(section="scaling", by="decode workers")
    lines = [[row.of["workers"], _rate(row)] for row in rows]
    return _table(["decode workers", "slices a second"], lines)


def _host(result: Result) -> str:
    rows = result.rows_of(section="host", what="pipeline")
    lines = [
        [row.of["cores"], _number(row.median("rate")), _number(row.median("steady rate"))] for row in rows
    ]
    return _table(["cores", "slices a second, null models", "without start-up"], lines)


_TABLES: Final[dict[str, Callable[[Result], str]]] = {
    "What is left of the chip's rate": _rates,
    "Each model alone": _models,
    "Parity": _parity,
    "The chip": _chip,
    "Overlap": _overlap,
    "By lanes": _lanes,
    "By batch": _batches,
    "By decode workers": _workers,
    "The host without a GPU": _host,
}


def _by(result: Result, what: str, column: str, names: Sequence[str]) -> str:
    rows = result.rows_of(section="scaling", by=what)
    lines = [
        [_title(row.of["runtime"]), row.of[column], *(_number(row.median(name)) for name in names)]
        for row in rows
    ]
    heads = ["slices a second" if name == "rate" else name for name in names]
    return _table(["", column, *heads], lines)


def _values(result: Result, key: str, **of: str) -> list[str]:
    """What the rows that are `of` all this have for `key`, each once."""
    return list(dict.fromkeys(row.of[key] for row in result.rows_of(**of) if key in row.of))


def _title(runtime: str) -> str:
    return next((each.title for kind, each in RUNTIMES.items() if kind == runtime), runtime)


def _rate(row: Row) -> str:
    return _number(row.median("rate"))


def _share(row: Row | None, name: str) -> str:
    if row is None:
        return ""
    share = row.median(name)
    return _rate(row) + ("" if share is None else f" ({share:.2f})")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
