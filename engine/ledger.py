"""The ledger: a SQLite file that records what a run has finished, so that a killed run can continue.

One row a slice, keyed by the slice's place in the run (`order`, then `slice`), and the run's identity: the
options that change results. A batch's rows are one transaction.

The rollback journal (never WAL, whose shared memory does not work on NFS) is deleted after each transaction,
so nothing but `run.sqlite` stays behind. `synchronous` is FULL: a power cut loses no committed row, and the
few milliseconds that this costs are paid once a batch. No cursor outlives a call, since an open reader keeps
others from writing in this journal mode.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import numpy as np

from engine import ledger_file
from engine.disk import flush_all
from engine.errors import MachineError
from engine.ledger_file import persistently, plain_errors
from engine.ledger_rows import (
    COLUMNS,
    SELECT,
    SELECT_PAGE,
    Counts,
    Known,
    KnownRow,
    SliceRow,
    Status,
    is_sound,
    reading_any_text,
    row_of,
    stored,
)
from engine.lock import RunLock

__all__ = ["Counts", "Known", "Ledger", "SliceRow", "Status"]

T = TypeVar("T")

_SELECT_KNOWN: Final = f"SELECT {', '.join(('ord', *Known._fields[1:]))} FROM slices"
_INSERT: Final = f"INSERT OR REPLACE INTO slices VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"
_SELECT_OVERRULED: Final = SELECT.replace("FROM slices", "FROM overruled")
_OVERRULE: Final = _INSERT.replace("INTO slices", "INTO overruled")
_STACK: Final = (
    "DELETE FROM stacks",
    "DELETE FROM firsts",
    "DELETE FROM overruled",
    "INSERT INTO stacks SELECT volume, ord, slice FROM slices ORDER BY volume, ord, slice",
    """INSERT INTO firsts SELECT ord, slice, volume FROM (
        SELECT *, row_number() OVER (PARTITION BY volume ORDER BY ord, slice) AS place FROM stacks
    ) WHERE place = 1""",
)
MADE: Final = "made"
"""The note of what was made of all rows: it goes as soon as one is committed or forgotten."""
_LOOKED_THROUGH_AT_ONCE: Final = 256
"""Rows for which a commit has to wait."""


class Ledger:
    """An open ledger, held by this run alone. Any thread may call it; calls wait for one another.

    Writes that the disk fails are tried again for a few seconds (`PATIENCE_S`).
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, run_lock: RunLock, folders: tuple[Path, ...]
    ) -> None:
        """Use `Ledger.open`."""
        self.path = path
        self._connection = connection
        self._run_lock = run_lock
        self._folders = folders
        self._turn = threading.Lock()

    @classmethod
    def open(
        cls, path: Path, identity: Mapping[str, object], fresh: bool, folders: tuple[Path, ...] = ()
    ) -> Self:
        """Create the ledger, or open it, look it through and check that its run had the same `identity`.

        That is of JSON values. `fresh` deletes what was there. `folders` hold the files that rows speak of:
        they are flushed to the disk before such a row is. Raises UsageError when another run holds the output
        folder, when the identity differs, and when the file is damaged or no ledger; MachineError when it
        cannot be written.
        """
        run_lock = RunLock.take(path)
        try:
            if fresh:
                ledger_file.delete(path)
            with plain_errors(path):
                connection = persistently(lambda: _connect(path, identity))
        except BaseException:
            run_lock.release()
            raise
        return cls(path, connection, run_lock, folders)

    def declare(self, identity: Mapping[str, object]) -> None:
        """Say anew what run this is, of which more is known by now; only before its first row."""
        text = json.dumps(dict(identity), sort_keys=True)
        self._write(lambda connection: ledger_file.write_meta(connection, "identity", text))

    def commit(self, rows: Sequence[SliceRow]) -> None:
        """Store `rows` in one transaction; a row that was there is replaced. MachineError on a full disk."""
        if any(row.mask_path or row.has_mask for row in rows):
            flush_all(self._folders)
        kept = [*map(stored, rows)]
        self._change(lambda connection: connection.executemany(_INSERT, kept))

    def forget(self, orders: Iterable[bytes]) -> None:
        """Delete every slice of the files at `orders` in one transaction, so that they are scored again."""
        keys = [(order,) for order in orders]
        self._change(lambda connection: connection.executemany("DELETE FROM slices WHERE ord = ?", keys))

    def known(self, after: bytes, limit: int) -> list[KnownRow]:
        """The next slices after the file at `after` (b"" for the first), in order.

        Whole files only: `limit` slices and the rest of the last one's file. Empty at the end. Rows are given
        as they are: `damaged` tells which of them are not what was written.
        """
        page = self._fetch(f"{_SELECT_KNOWN} WHERE ord > ? ORDER BY ord, slice LIMIT ?", (after, limit))
        if len(page) == limit:
            page += self._fetch(f"{_SELECT_KNOWN} WHERE ord = ? AND slice > ? ORDER BY slice", page[-1][:2])
        return page

    def damaged(self) -> set[bytes]:
        """The files (their orders) of which a row is not what was written. Reads all; commits slip in."""

        # By one cursor: a key that was damaged leads a search for what is behind it astray.
        def look_through() -> set[bytes]:
            found: set[bytes] = set()
            with self._turn:
                rows = self._connection.execute(SELECT)
            while page := self._next(rows):
                found.update(row[0] for row in page if not is_sound(row))
            return found

        return self._patiently(look_through)

    def is_damaged(self, order: bytes) -> bool:
        """Whether a row of the file at `order` is not what was written."""
        return not all(map(is_sound, self._fetch(f"{SELECT} WHERE ord = ?", (order,))))

    def rows(self, batch: int = 4096) -> Iterator[SliceRow]:
        """Every row in order, as committed or as overruled; `batch` are read at a time, to bound memory.

        Raises MachineError at a row that is not what was written, and forgets the files of all that are not:
        the next run scores them again.
        """
        after: tuple[object, ...] = (b"", -1)
        while page := self._fetch(SELECT_PAGE, (*after, batch)):
            yield from self._overruled(self._sound(page), after)
            after = page[-1][:2]

    def stack(self) -> None:
        """Sort what is committed by volume, for `volumes` and `rows_of`, which know nothing of later rows.

        No row is overruled any more. Keys are sorted on disk, where SQLite keeps what is temporary: the
        ledger does not change.
        """
        self._write(lambda connection: [connection.execute(each) for each in _STACK], in_temporary=True)

    def volumes(self, batch: int = 4096) -> Iterator[str]:
        """Each volume once, in the order of their first slices, as they were at `stack`."""
        after: tuple[object, ...] = (b"", -1)
        query = "SELECT * FROM firsts WHERE (ord, slice) > (?, ?) ORDER BY ord, slice LIMIT ?"
        while page := self._fetch(query, (*after, batch)):
            yield from (volume for *_, volume in page)
            after = page[-1][:2]

    def rows_of(self, volume: str, batch: int = 4096) -> Iterator[SliceRow]:
        """The rows of a volume in order, as committed. Raises as `rows` does."""
        after: tuple[object, ...] = (b"", -1)
        keys = "SELECT ord, slice FROM stacks WHERE volume = ? AND (ord, slice) > (?, ?)"
        query = f"{SELECT} WHERE (ord, slice) IN ({keys} ORDER BY ord, slice LIMIT ?) ORDER BY ord, slice"
        while page := self._fetch(query, (volume, *after, batch)):
            yield from self._sound(page)
            after = page[-1][:2]

    def overrule(self, rows: Sequence[SliceRow]) -> None:
        """Have `rows` give these instead of what is committed, until the ledger is closed."""
        kept = [*map(stored, rows)]
        self._write(lambda connection: connection.executemany(_OVERRULE, kept), in_temporary=True)

    def emptied(self) -> list[bytes]:
        """The stems of slices that were overruled to have no mask."""
        return [stem for (stem,) in self._fetch("SELECT stem FROM overruled WHERE has_mask = 0", ())]

    def counts(self) -> Counts:
        """Count the slices, as committed or as overruled.

        Reads the whole table, so it is for a run's start and end, not for each batch.
        """
        ((total, ok, has_mask),) = self._fetch(
            "SELECT count(*), total(status = 'ok'), total(has_mask = 1) FROM slices", ()
        )
        ((emptied,),) = self._fetch("SELECT total(has_mask = 0) FROM overruled", ())
        return Counts(ok=int(ok), quarantined=total - int(ok), has_mask=int(has_mask - emptied))

    def below(self, threshold: float) -> int:
        """Count the scored slices whose float32 tumour probability is below `threshold`. Reads every row."""
        ((count,),) = self._fetch(
            "SELECT count(*) FROM slices WHERE status = 'ok' AND tumor_probability < ?",
            (float(np.float32(threshold)),),
        )
        return int(count)

    def get_meta(self, key: str) -> object:
        """The JSON value kept under `key`; None where there is none, or another than was written."""

        def read() -> object:
            with self._turn:
                return ledger_file.read_meta(self._connection, key)

        return self._patiently(read)

    def set_meta(self, key: str, value: object) -> None:
        """Keep a small JSON value, such as the seconds spent so far."""
        self._write(lambda connection: ledger_file.write_meta(connection, key, json.dumps(value)))

    def close(self) -> None:
        """Close the file and let the next run in. Closing twice is harmless."""
        with self._turn:
            self._connection.close()
        self._run_lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _change(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do `work` on the rows; the note of what was made of them goes with the same transaction."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM meta WHERE key = ?", (MADE,))
            work(connection)

        self._write(change)

    def _write(self, work: Callable[[sqlite3.Connection], object], *, in_temporary: bool = False) -> None:
        """Do `work` in one transaction, as often as the disk needs."""

        def transaction() -> None:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                work(self._connection)

        with self._turn, plain_errors(self.path, at_work=True, in_temporary=in_temporary):
            persistently(transaction)

    def _fetch(self, query: str, arguments: Sequence[object]) -> list[tuple[Any, ...]]:
        def fetch() -> list[tuple[Any, ...]]:
            with self._turn:
                return self._connection.execute(query, arguments).fetchall()

        return self._patiently(fetch)

    def _next(self, rows: sqlite3.Cursor) -> list[tuple[Any, ...]]:
        with self._turn:
            return rows.fetchmany(_LOOKED_THROUGH_AT_ONCE)

    def _patiently(self, read: Callable[[], T]) -> T:
        with plain_errors(self.path, at_work=True):
            return reading_any_text(self._connection, lambda: persistently(read))

    def _sound(self, page: list[tuple[Any, ...]]) -> list[SliceRow]:
        if not all(map(is_sound, page)):
            self.forget(self.damaged())
            raise MachineError(f"{self.path}: a row was damaged meanwhile: run the same command again")
        return [*map(row_of, page)]

    def _overruled(self, rows: list[SliceRow], after: tuple[object, ...]) -> list[SliceRow]:
        """A page of `rows`, which are behind `after`, with those in it that were overruled."""
        query = f"{_SELECT_OVERRULED} WHERE (ord, slice) > (?, ?) AND (ord, slice) <= (?, ?)"
        found = self._sound(self._fetch(query, (*after, rows[-1].order, rows[-1].slice)))
        instead = {(row.order, row.slice): row for row in found}
        return [instead.get((row.order, row.slice), row) for row in rows]


def _connect(path: Path, identity: Mapping[str, object]) -> sqlite3.Connection:
    connection = ledger_file.connect(path, "rwc")
    try:
        ledger_file.create_or_check(connection, path, identity)
        connection.executescript(ledger_file.TEMPORARY)
    except BaseException:
        connection.close()
        raise
    return connection
