"""results.parquet and errors.parquet: the tables with their types, for millions of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from engine.disk import cannot_write
from engine.errors import MachineError
from engine.ledger import SliceRow
from engine.outputs.atomic import replacing
from engine.outputs.tables import ERROR_COLUMNS, RESULT_COLUMNS, Cell, error_cells, result_cells

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS: Final = 32_768
"""Rows that are held, and written as one row group: 20 MB or so of them."""
_TYPES: Final = {
    "slice": "int32", "tumor_probability": "float32", "has_mask": "int8", "mask_pixels": "int64",
    "mask_fraction": "float64", "bbox_x": "int32", "bbox_y": "int32", "bbox_w": "int32", "bbox_h": "int32",
}  # fmt: skip
"""Of the columns that are no text."""


def expect_parquet() -> None:
    """Raise MachineError where Parquet cannot be written."""
    if find_spec("pyarrow") is None:
        raise MachineError("--parquet needs pyarrow, which is not installed: pip install 'tumorscan[tables]'")


def write_parquet(rows: Iterable[SliceRow], out: Path, extra: Sequence[str] = ()) -> None:
    """Write `out`/results.parquet and `out`/errors.parquet, as `write_tables` does its two.

    An empty cell is null. The same rows give the same bytes from the same version of pyarrow. Raises
    MachineError when the folder is full or cannot be written.
    """
    import pyarrow.parquet as pq

    columns = (*RESULT_COLUMNS, *extra)
    results, errors = _schema(columns), _schema(ERROR_COLUMNS)

    def writer(file: BinaryIO, schema: pa.Schema) -> Any:
        return pq.ParquetWriter(file, schema, compression="zstd")

    try:
        with (
            replacing(out / "results.parquet", durable=True) as results_file,
            replacing(out / "errors.parquet", durable=True) as errors_file,
            writer(results_file, results) as to_results,
            writer(errors_file, errors) as to_errors,
        ):
            for group in _groups(rows):
                to_results.write_table(_table([result_cells(row, columns) for row in group], results))
                bad = [error_cells(row) for row in group if row.status == "quarantined"]
                if bad:
                    to_errors.write_table(_table(bad, errors))
    except OSError as error:
        raise cannot_write(out, error) from error


def _groups(rows: Iterable[SliceRow]) -> Iterator[list[SliceRow]]:
    left = iter(rows)
    while group := list(islice(left, GROUP_ROWS)):
        yield group


def _schema(columns: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, _TYPES.get(name, "string")) for name in columns])


def _table(cells: list[tuple[Cell, ...]], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = zip(*cells, strict=True)
    return pa.table(
        [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)], schema
    )
