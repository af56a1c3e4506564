"""The tables as Parquet: the same rows as the CSV, with types, in groups."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from engine.errors import MachineError
from engine.ledger import SliceRow
from engine.outputs import parquet
from engine.outputs.parquet import expect_parquet, write_parquet
from engine.outputs.tables import write_tables

pa = pytest.importorskip("pyarrow.parquet")


def rows(count: int) -> list[SliceRow]:
    scored = SliceRow(
        b"\1", 0, "data", "data/a.tif", "ok", 1, 1, tumor_probability=0.1, has_mask=1,
        mask_path="masks/a_mask.png", mask_rle='{"size":[2,2],"counts":"04"}', mask_pixels=4,
        mask_fraction=1.0, bbox_x=0, bbox_y=0, bbox_w=2, bbox_h=2,
    )  # fmt: skip
    empty = dataclasses.replace(
        scored, has_mask=0, mask_path="", mask_rle="", mask_pixels=0, mask_fraction=0.0, bbox_w=0, bbox_h=0
    )
    bad = SliceRow(
        b"\1",
        0,
        "data",
        "data/=b.tif",
        "quarantined",
        1,
        1,
        stage="decode",
        code="truncated",
        message="=ends\nearly",
    )
    return [(scored, empty, bad)[number % 3] for number in range(count)]


def test_parquet_has_the_rows_of_the_csv_with_their_types(tmp_path: Path) -> None:
    extra = ("mask_rle", "probability_path")
    write_tables(rows(7), tmp_path, extra)
    write_parquet(rows(7), tmp_path, extra)
    table = pa.read_table(tmp_path / "results.parquet")
    assert [str(kind) for kind in table.schema.types] == [
        "string", "string", "int32", "string", "float", "int8", "string", "int64", "double",
        "int32", "int32", "int32", "int32", "string", "string",
    ]  # fmt: skip
    for name in ("results", "errors"):
        text = pd.read_csv(tmp_path / f"{name}.csv")
        typed = pa.read_table(tmp_path / f"{name}.parquet").to_pandas()
        pd.testing.assert_frame_equal(text, typed, check_dtype=False, atol=1e-7)


def test_rows_are_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 4)
    write_parquet(iter(rows(10)), tmp_path)
    file = pa.ParquetFile(tmp_path / "results.parquet")
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [4, 4, 2]
    assert pa.read_table(tmp_path / "errors.parquet").num_rows == 3


def test_no_rows_make_empty_tables(tmp_path: Path) -> None:
    write_parquet([], tmp_path)
    assert pa.read_table(tmp_path / "results.parquet").num_rows == 0


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    write_parquet(rows(9), tmp_path)
    first = (tmp_path / "results.parquet").read_bytes()
    write_parquet(rows(9), tmp_path)
    assert (tmp_path / "results.parquet").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.parquet", "results.parquet"]


def test_without_pyarrow_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"pip install 'tumorscan\[tables\]'"):
        expect_parquet()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot be written"):
        write_parquet(rows(3), Path("/proc/self"))
