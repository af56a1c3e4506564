"""results.csv and errors.csv, written from the ledger.

The same rows give the same bytes on every machine and Python: cells are quoted here, because the csv module
of Python 3.11 (which pandas uses too) leaves a lone carriage return unquoted, and readers then see two rows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from engine.disk import cannot_write
from engine.ledger import Ledger, SliceRow
from engine.outputs.atomic import replacing
from engine.text import FORMULA_STARTS

RESULT_COLUMNS: Final = (
    "volume", "image_path", "slice", "status", "tumor_probability", "has_mask", "mask_path", "mask_pixels",
    "mask_fraction", "bbox_x", "bbox_y", "bbox_w", "bbox_h",
)  # fmt: skip
ERROR_COLUMNS: Final = ("image_path", "slice", "stage", "code", "message")

_NEEDS_QUOTES: Final = re.compile(r'[",\r\n]')
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")


def write_tables(ledger: Ledger, out: Path) -> None:
    """Write `out`/results.csv (every slice) and `out`/errors.csv (the quarantined), in order.

    Each replaces the old one whole, after it is on the disk. Rows are streamed, so memory does not grow with
    their number. Raises MachineError when the folder is full or cannot be written.
    """
    try:
        with (
            replacing(out / "results.csv", durable=True) as results,
            replacing(out / "errors.csv", durable=True) as errors,
        ):
            results.write(_line(RESULT_COLUMNS))
            errors.write(_line(ERROR_COLUMNS))
            for row in ledger.rows():
                results.write(_line(_result_cells(row)))
                if row.status == "quarantined":
                    errors.write(_line(_error_cells(row)))
    except OSError as error:
        raise cannot_write(out, error) from error


def _result_cells(row: SliceRow) -> tuple[str, ...]:
    if row.status == "quarantined":
        known = (_path(row.volume), _path(row.image_path), str(row.slice), row.status)
        return (*known, *[""] * (len(RESULT_COLUMNS) - len(known)))
    return (
        _path(row.volume),
        _path(row.image_path),
        str(row.slice),
        row.status,
        _real(row.tumor_probability),
        _integer(row.has_mask),
        _path(row.mask_path),
        _integer(row.mask_pixels),
        _real(row.mask_fraction),
        _integer(row.bbox_x),
        _integer(row.bbox_y),
        _integer(row.bbox_w),
        _integer(row.bbox_h),
    )


def _error_cells(row: SliceRow) -> tuple[str, ...]:
    return _path(row.image_path), str(row.slice), row.stage, row.code, _message(row.message)


def _path(text: str) -> str:
    """Text that no spreadsheet takes for a formula and that still opens; discovery shows paths so already."""
    return f"./{text}" if text.startswith(FORMULA_STARTS) else text


def _message(message: str) -> str:
    """One line that no spreadsheet takes for a formula: "error: " goes before what would begin one."""
    line = _CONTROL.sub(" ", message).strip()
    return f"error: {line}" if line.startswith(FORMULA_STARTS) else line


def _real(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _integer(value: int | None) -> str:
    return "" if value is None else str(value)


def _line(cells: tuple[str, ...]) -> bytes:
    return (",".join(map(_quoted, cells)) + "\n").encode()


def _quoted(cell: str) -> str:
    if not _NEEDS_QUOTES.search(cell):
        return cell
    escaped = cell.replace('"', '""')
    return f'"{escaped}"'
