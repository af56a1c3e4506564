"""Tables that another process writes: the bytes of this one's own, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from engine import table_process
from engine.errors import MachineError
from engine.finish import Finish, finish
from engine.helper import Helper
from engine.ledger import Ledger, SliceRow
from engine.outputs.components import Rule
from engine.outputs.parquet import write_parquet
from engine.outputs.pseudonyms import Pseudonyms
from engine.outputs.tables import write_tables
from engine.rows import with_mask
from engine.table_process import LEAST_BYTES, tables_aside

EXTRA = ("mask_rle",)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Twelve slices, of names that need care, one of them in quarantine."""
    mask = np.zeros((9, 7), np.uint8)
    mask[2:5, 3:6] = 1
    rows = [
        SliceRow(b"%04d" % i, 0, f"p{i % 3}", f"p{i % 3}/é, {i}.tif", "ok", 1, 1, tumor_probability=i / 13)
        for i in range(12)
    ]
    rows = [with_mask(row, mask if i % 2 else None) for i, row in enumerate(rows)]
    rows[5] = SliceRow(b"0005", 0, "p2", "p2/5.tif", "quarantined", 1, 1, stage="read", code="x", message="y")
    with Ledger.open(tmp_path / "out\udcff" / "run.sqlite", {}, fresh=True) as ledger:
        ledger.commit(rows)
        yield ledger


@pytest.fixture
def aside(monkeypatch: pytest.MonkeyPatch) -> list[Helper]:
    """However small the ledger and the machine are; the processes that were started."""
    started: list[Helper] = []

    class Seen(Helper):
        def __init__(self, module: str, what: str) -> None:
            super().__init__(module, what)
            started.append(self)

    monkeypatch.setattr(table_process, "LEAST_BYTES", 0)
    monkeypatch.setattr(table_process, "Helper", Seen)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return started


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("run.")}


@pytest.mark.parametrize("parquet", [False, True])
def test_tables_are_those_that_this_process_writes(
    ledger: Ledger, aside: list[Helper], tmp_path: Path, parquet: bool
) -> None:
    out, here = ledger.path.parent, tmp_path / "here"
    with tables_aside(ledger.path, out, EXTRA, parquet=parquet) as are_written:
        assert are_written()
    write_tables(ledger.rows(), here, EXTRA)
    if parquet:
        write_parquet(ledger.rows(), here, EXTRA)
    assert len(files_of(here)) == (4 if parquet else 2)
    assert files_of(out) == files_of(here)
    assert len(aside) == 1


def test_of_a_small_ledger_no_process_writes(ledger: Ledger) -> None:
    assert ledger.path.stat().st_size < LEAST_BYTES
    with tables_aside(ledger.path, ledger.path.parent, EXTRA, parquet=False) as are_written:
        assert not are_written()


def test_on_one_core_no_process_writes(
    ledger: Ledger, aside: list[Helper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with tables_aside(ledger.path, ledger.path.parent, EXTRA, parquet=False) as are_written:
        assert not are_written()
    assert not aside


def test_a_process_that_cannot_be_started_is_done_without(
    ledger: Ledger, aside: list[Helper], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(module: str, what: str) -> Helper:
        raise MachineError(f"{what} cannot be started: no more processes")

    monkeypatch.setattr(table_process, "Helper", refuse)
    finish(ledger, Finish(ledger.path.parent))
    assert {"results.csv", "errors.csv", "volumes.csv"} <= files_of(ledger.path.parent).keys()


def test_a_run_ends_with_the_same_files_with_and_without_it(
    ledger: Ledger, aside: list[Helper], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ledger.path.parent
    finish(ledger, Finish(out, masks="rle", parquet=True))
    by_two = files_of(out)
    ledger.set_meta("made", None)
    monkeypatch.setattr(table_process, "LEAST_BYTES", LEAST_BYTES)
    finish(ledger, Finish(out, masks="rle", parquet=True))
    assert files_of(out) == by_two
    assert (len(by_two), len(aside)) == (5, 1)


@pytest.mark.parametrize(
    "how",
    [{"components": Rule.parse("largest")}, {"pseudonyms": Pseudonyms(b"k" * 32)}],
    ids=["components", "pseudonyms"],
)
def test_rows_that_are_not_as_committed_are_written_here(
    ledger: Ledger, aside: list[Helper], how: dict[str, object]
) -> None:
    finish(ledger, Finish(ledger.path.parent, **how))  # type: ignore[arg-type]
    assert not aside
    assert (ledger.path.parent / "results.csv").read_text().count("\n") == 13


def test_one_that_is_killed_leaves_its_work_to_this_process_and_nothing_behind(
    ledger: Ledger, aside: list[Helper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ledger.path.parent
    with tables_aside(ledger.path, out, EXTRA, parquet=False) as are_written:
        os.kill(aside[0].pid, signal.SIGSTOP)
        (out / f".tumorscan-00000000-{aside[0].pid}-0.tmp").write_bytes(b"half a table")
        os.kill(aside[0].pid, signal.SIGKILL)
        assert not are_written()
    assert not list(out.glob(".tumorscan-*"))
    write_tables(ledger.rows(), tmp_path / "here")
    real = table_process.Helper

    def killed(module: str, what: str) -> Helper:
        process = real(module, what)
        os.kill(process.pid, signal.SIGKILL)
        return process

    monkeypatch.setattr(table_process, "Helper", killed)
    finish(ledger, Finish(out))
    assert files_of(out).items() >= files_of(tmp_path / "here").items()


def test_nobody_writes_any_more_once_the_block_has_ended(ledger: Ledger, aside: list[Helper]) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        tables_aside(ledger.path, ledger.path.parent, EXTRA, parquet=False),
    ):
        raise ZeroDivisionError
    deadline = time.monotonic() + 10
    while Path(f"/proc/{aside[0].pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_row_that_was_damaged_is_told_of_as_ever(ledger: Ledger, aside: list[Helper]) -> None:
    with closing(sqlite3.connect(ledger.path)) as other:
        other.execute("UPDATE slices SET volume = 'p1' WHERE ord = ?", (b"0006",))
        other.commit()
    with tables_aside(ledger.path, ledger.path.parent, EXTRA, parquet=False) as are_written:
        assert not are_written()
    with pytest.raises(MachineError, match="a row was damaged meanwhile"):
        finish(ledger, Finish(ledger.path.parent))
    assert not list(ledger.path.parent.glob(".tumorscan-*"))
