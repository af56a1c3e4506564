"""results.csv and errors.csv, and what stands in their columns.

The same rows give the same bytes on every machine and Python: cells are quoted here, because the csv module
of Python 3.11 (which pandas uses too) leaves a lone carriage return unquoted, and readers then see two rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Final

from engine.disk import cannot_write
from engine.ledger import SliceRow
from engine.outputs.atomic import replacing
from engine.text import FORMULA_STARTS

RESULT_COLUMNS: Final = (
    "volume", "image_path", "slice", "status", "tumor_probability", "has_mask", "mask_path", "mask_pixels",
    "mask_fraction", "bbox_x", "bbox_y", "bbox_w", "bbox_h",
)  # fmt: skip
EXTRA_COLUMNS: Final = ("mask_rle", "probability_path")
"""Stand behind the others in results.csv, each when the run was asked for it."""
ERROR_COLUMNS: Final = ("image_path", "slice", "stage", "code", "message")

Cell = str | int | float | None

_PLACE: Final = ("volume", "image_path", "slice", "status")
_PATHS: Final = frozenset({"volume", "image_path", "mask_path", "probability_path"})
_STARTS: Final = frozenset(FORMULA_STARTS)
_NEEDS_QUOTES: Final = re.compile(r'[",\r\n]')
_NEEDS_QUOTES_IN_A_LINE: Final = re.compile(r'["\r\n]')
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")


def write_tables(rows: Iterable[SliceRow], out: Path, extra: tuple[str, ...] = ()) -> None:
    """Write `out`/results.csv (every slice) and `out`/errors.csv (the quarantined), in the order of `rows`.

    `extra` are some of EXTRA_COLUMNS. Each file replaces the old one whole, after it is on the disk. Rows are
    streamed, so memory does not grow with their number. Raises MachineError when the folder is full or cannot
    be written.
    """
    columns = (*RESULT_COLUMNS, *extra)
    try:
        with (
            replacing(out / "results.csv", durable=True) as results,
            replacing(out / "errors.csv", durable=True) as errors,
        ):
            results.write(line(columns))
            errors.write(line(ERROR_COLUMNS))
            for row in rows:
                results.write(line(result_cells(row, columns)))
                if row.status == "quarantined":
                    errors.write(line(error_cells(row)))
    except OSError as error:
        raise cannot_write(out, error) from error


def result_cells(row: SliceRow, columns: tuple[str, ...]) -> tuple[Cell, ...]:
    """What `row` has in these columns of results; None where nothing is known, or no file is."""
    values = _values_of(columns)(row)
    if row.status == "quarantined":
        values = tuple(value if name in _PLACE else None for name, value in zip(columns, values, strict=True))
    return tuple(
        [
            (path_cell(value) if name in _PATHS else value) or None if isinstance(value, str) else value
            for name, value in zip(columns, values, strict=True)
        ]
    )


def error_cells(row: SliceRow) -> tuple[Cell, ...]:
    """What `row`, of a quarantined slice, has in ERROR_COLUMNS."""
    return path_cell(row.image_path), row.slice, row.stage, row.code, _message(row.message)


def path_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula and that still opens; discovery shows paths so already."""
    return f"./{text}" if text[:1] in _STARTS else text


def line(cells: Iterable[Cell]) -> bytes:
    """A line of a table; real numbers have six digits."""
    texts = [
        "" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells
    ]
    joined = ",".join(texts)
    # A line is looked at as a whole first: hardly any has a cell that needs quotes.
    if joined.count(",") >= len(texts) or _NEEDS_QUOTES_IN_A_LINE.search(joined):
        joined = ",".join(map(_quoted, texts))
    return f"{joined}\n".encode()


@cache
def _values_of(columns: tuple[str, ...]) -> Callable[[SliceRow], tuple[Cell, ...]]:
    return attrgetter(*columns)


def _message(message: str) -> str:
    """One line that no spreadsheet takes for a formula: "error: " goes before what would begin one."""
    line = _CONTROL.sub(" ", message).strip()
    return f"error: {line}" if line.startswith(FORMULA_STARTS) else line


def _quoted(cell: str) -> str:
    if not _NEEDS_QUOTES.search(cell):
        return cell
    escaped = cell.replace('"', '""')
    return f'"{escaped}"'
