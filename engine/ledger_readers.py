"""A ledger's rows and notes, read by who does not hold it: without a lock, and changing nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from engine import ledger_file
from engine.errors import MachineError
from engine.ledger_rows import SELECT_PAGE, SliceRow, is_sound, reading_any_text, row_of


def stored_identity(path: Path) -> dict[str, object] | None:
    """The identity of the run that `path` records, or None where there is no ledger yet.

    Takes no lock and changes nothing (see `ledger_file.peek`). Raises UsageError when the file is damaged or
    no ledger, MachineError when it cannot be read.
    """
    found = _peek(path, lambda connection: ledger_file.read_identity(connection, path))
    return cast("dict[str, object] | None", found)


def has_rows(path: Path) -> bool:
    """Whether the run that `path` records came to any row; as `stored_identity` otherwise."""
    query = "SELECT EXISTS (SELECT 1 FROM slices)"
    return bool(_peek(path, lambda connection: connection.execute(query).fetchone()[0]))


def stored_meta(path: Path) -> dict[str, object]:
    """All that is kept under keys in the ledger of `stored_identity`, where it is what was written."""

    def look(connection: sqlite3.Connection) -> dict[str, object]:
        keys = [key for (key,) in connection.execute("SELECT key FROM meta ORDER BY key")]
        return {key: ledger_file.read_meta(connection, key) for key in keys}

    return cast("dict[str, object]", _peek(path, look))


def stored_count(path: Path) -> int:
    """How many rows the ledger of `stored_identity` has; as that otherwise."""
    query = "SELECT count(*) FROM slices"
    return int(_peek(path, lambda connection: connection.execute(query).fetchone()[0]))


def stored_rows(path: Path, batch: int = 4096, *, skips_damaged: bool = False) -> Iterator[SliceRow]:
    """Every row of the ledger of `stored_identity`, in order, `batch` read at a time; as that otherwise.

    A run may go on meanwhile: some of the rows that it adds are then among them. Raises MachineError at a row
    that is not what was written, unless it is to skip those.
    """
    after: tuple[object, ...] = (b"", -1)
    while page := _peek(path, partial(_page, arguments=(*after, batch))):
        for row in page:
            if is_sound(row):
                yield row_of(row)
            elif not skips_damaged:
                raise MachineError(
                    f"{path}: a row is damaged: `tumorscan score` of the same run scores its slice again"
                )
        after = page[-1][:2]


def _page(connection: sqlite3.Connection, arguments: Sequence[object]) -> list[tuple[Any, ...]]:
    return reading_any_text(connection, lambda: connection.execute(SELECT_PAGE, arguments).fetchall())


def _peek(path: Path, look: Callable[[sqlite3.Connection], Any]) -> Any:
    try:
        if not path.exists():
            return None
    except OSError as error:
        raise MachineError(f"{path}: cannot be read ({error.strerror}): check the folder") from error
    return ledger_file.peek(path, look)
