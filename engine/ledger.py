"""The ledger: a SQLite file that records what a run has finished, so that a killed run can continue.

One row a slice, keyed by the slice's place in the run (`order`, then `slice`), and the run's identity: the
options that change results. A batch's rows are one transaction.

The rollback journal (never WAL, whose shared memory does not work on NFS) is deleted after each transaction,
so nothing but `run.sqlite` stays behind. `synchronous` is FULL: a power cut loses no committed row, and the
few milliseconds that this costs are paid once a batch. No cursor outlives a call, since an open reader blocks
commits in this journal mode.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, cast

import numpy as np

from engine.disk import cannot_write, disk_full
from engine.errors import MachineError, UsageError
from engine.lock import RunLock

Status = Literal["ok", "quarantined"]

APPLICATION_ID: Final = 0x54534C47  # "TSLG": tells a ledger from any other SQLite file
FORMAT: Final = 1  # stored as user_version; another one is refused
BUSY_TIMEOUT_S: Final = 30.0  # how long a commit waits for a reader, such as a database browser

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE slices (
    ord BLOB NOT NULL,
    slice INTEGER NOT NULL,
    volume TEXT NOT NULL,
    image_path TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'quarantined')),
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    tumor_probability REAL,
    has_mask INTEGER,
    mask_path TEXT NOT NULL,
    mask_pixels INTEGER,
    mask_fraction REAL,
    bbox_x INTEGER,
    bbox_y INTEGER,
    bbox_w INTEGER,
    bbox_h INTEGER,
    stage TEXT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    transient INTEGER NOT NULL,
    PRIMARY KEY (ord, slice)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class SliceRow:
    """One slice's outcome: its row of results.csv, and of errors.csv when it is quarantined.

    `order` (not empty) is the file's place in the run, `slice` the slice's in the file. `volume`,
    `image_path` and `mask_path` (below the output folder, "" without a mask) are text that UTF-8 can encode.
    `size` (bytes) and `mtime_ns` are the file's when it was read. `has_mask` is 0 or 1; pixels and boxes are
    at the source's size. What was not measured is None.
    """

    order: bytes
    slice: int
    volume: str
    image_path: str
    status: Status
    size: int
    mtime_ns: int
    tumor_probability: float | None = None
    has_mask: int | None = None
    mask_path: str = ""
    mask_pixels: int | None = None
    mask_fraction: float | None = None
    bbox_x: int | None = None
    bbox_y: int | None = None
    bbox_w: int | None = None
    bbox_h: int | None = None
    stage: str = ""
    code: str = ""
    message: str = ""
    transient: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What a continuation needs of a slice that is already in the ledger."""

    order: bytes
    slice: int
    image_path: str
    status: Status
    transient: bool
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Slices in the ledger: scored, quarantined, and scored with a mask."""

    ok: int
    quarantined: int
    has_mask: int


def _columns(row_type: type[SliceRow] | type[Known]) -> list[str]:
    """The table's column of each field ("order" is a word of SQL, so its column is "ord")."""
    return ["ord" if field.name == "order" else field.name for field in fields(row_type)]


_SLICE_COLUMNS: Final = ", ".join(_columns(SliceRow))
_KNOWN_COLUMNS: Final = ", ".join(_columns(Known))
_MARKS: Final = ", ".join("?" * len(fields(SliceRow)))
_INSERT: Final = f"INSERT OR REPLACE INTO slices ({_SLICE_COLUMNS}) VALUES ({_MARKS})"
_values_of = attrgetter(*(field.name for field in fields(SliceRow)))


class Ledger:
    """An open ledger, held by this run alone. Any thread may call it; calls wait for one another."""

    def __init__(self, path: Path, connection: sqlite3.Connection, run_lock: RunLock) -> None:
        """Use `Ledger.open`."""
        self.path = path
        self._connection = connection
        self._run_lock = run_lock
        self._turn = threading.Lock()

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, object], fresh: bool) -> Self:
        """Create the ledger, or open it and check that its run had the same `identity` (JSON values).

        `fresh` deletes what was there. Raises UsageError when another run holds the output folder, when the
        identity differs, and when the file is damaged or no ledger; MachineError when it cannot be written.

        The file is not checked page by page (quick_check reads all of it: minutes at 40 million rows). SQLite
        refuses a truncated file by itself, and a continuation reads every row before the tables are written,
        so damage is met in time.
        """
        run_lock = RunLock.take(path)
        try:
            if fresh:
                _delete(path)
            with _plain_errors(path):
                connection = _connect(path, "rwc")
                try:
                    _create_or_check(connection, path, identity)
                except BaseException:
                    connection.close()
                    raise
        except BaseException:
            run_lock.release()
            raise
        return cls(path, connection, run_lock)

    def commit(self, rows: Sequence[SliceRow]) -> None:
        """Store `rows` in one transaction; a row that was there is replaced. MachineError on a full disk."""
        with self._transaction() as connection:
            connection.executemany(_INSERT, map(_values_of, rows))

    def forget(self, orders: Iterable[bytes]) -> None:
        """Delete every slice of the files at `orders` in one transaction, so that they are scored again."""
        with self._transaction() as connection:
            connection.executemany("DELETE FROM slices WHERE ord = ?", ((order,) for order in orders))

    def known(self, after: bytes, limit: int) -> list[Known]:
        """The next slices after the file at `after` (b"" for the first), in order.

        Whole files only: `limit` slices and the rest of the last one's file. Empty at the end.
        """
        page = self._fetch(
            f"SELECT {_KNOWN_COLUMNS} FROM slices WHERE ord > ? ORDER BY ord, slice LIMIT ?", (after, limit)
        )
        if len(page) == limit:
            page += self._fetch(
                f"SELECT {_KNOWN_COLUMNS} FROM slices WHERE ord = ? AND slice > ? ORDER BY slice",
                page[-1][:2],
            )
        return [
            Known(order, slice_, image_path, status, bool(transient), size, mtime_ns)
            for order, slice_, image_path, status, transient, size, mtime_ns in page
        ]

    def rows(self, batch: int = 4096) -> Iterator[SliceRow]:
        """Every row in order, read `batch` at a time: memory does not grow with the ledger."""
        after: tuple[object, ...] = (b"", -1)
        while page := self._fetch(
            f"SELECT {_SLICE_COLUMNS} FROM slices WHERE (ord, slice) > (?, ?) ORDER BY ord, slice LIMIT ?",
            (*after, batch),
        ):
            for *values, transient in page:
                yield SliceRow(*(*values, bool(transient)))
            after = page[-1][:2]

    def counts(self) -> Counts:
        """Count the slices. Reads the whole table, so it is for a run's start and end, not for each batch."""
        ((total, ok, has_mask),) = self._fetch(
            "SELECT count(*), total(status = 'ok'), total(has_mask = 1) FROM slices", ()
        )
        return Counts(ok=int(ok), quarantined=total - int(ok), has_mask=int(has_mask))

    def below(self, threshold: float) -> int:
        """Count the scored slices whose float32 tumour probability is below `threshold`. Reads every row."""
        ((count,),) = self._fetch(
            "SELECT count(*) FROM slices WHERE status = 'ok' AND tumor_probability < ?",
            (float(np.float32(threshold)),),
        )
        return int(count)

    def get_meta(self, key: str) -> object:
        """The JSON value kept under `key`, or None."""
        found = self._fetch("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(found[0][0]) if found else None

    def set_meta(self, key: str, value: object) -> None:
        """Keep a small JSON value, such as the seconds spent so far."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

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

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._turn, _plain_errors(self.path), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def _fetch(self, query: str, arguments: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._turn, _plain_errors(self.path):
            return self._connection.execute(query, arguments).fetchall()


def stored_identity(path: Path) -> dict[str, object] | None:
    """The identity of the run that `path` records, or None where there is no ledger yet.

    Takes no lock and changes nothing. Only after a run that was killed within a transaction is the file
    opened for writing, because SQLite has to roll that transaction back before anything can be read.
    Raises UsageError when the file is damaged or no ledger, MachineError when it cannot be read.
    """
    try:
        if not path.exists():
            return None
    except OSError as error:
        raise MachineError(f"{path}: cannot be read ({error.strerror}): check the folder") from error
    with _plain_errors(path):
        try:
            with closing(_connect(path, "ro")) as connection:
                return _read_identity(connection, path)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            with closing(_connect(path, "rw")) as connection:
                return _read_identity(connection, path)


def _delete(path: Path) -> None:
    """Delete a ledger, then its journal (SQLite drops a lone journal, but trusts a file without one)."""
    try:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _connect(path: Path, mode: Literal["ro", "rw", "rwc"]) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _create_or_check(connection: sqlite3.Connection, path: Path, identity: Mapping[str, object]) -> None:
    wanted = json.dumps(dict(identity), sort_keys=True)
    stored = _read_identity(connection, path)
    connection.execute("PRAGMA journal_mode = DELETE")
    if stored is None:
        connection.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
            f"{_SCHEMA}"
        )
        connection.execute("INSERT INTO meta VALUES ('identity', ?)", (wanted,))
        connection.commit()
    elif changes := _differences(stored, cast("dict[str, object]", json.loads(wanted))):
        raise UsageError(
            f"{path.parent} holds a run with other options ({'; '.join(changes)}): "
            "repeat those, give another --out, or start over with --fresh"
        )


def _read_identity(connection: sqlite3.Connection, path: Path) -> dict[str, object] | None:
    """The stored identity; None when the file is empty: new, or its creation was killed."""
    ((application,),) = connection.execute("PRAGMA application_id").fetchall()
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    if not tables and application in (0, APPLICATION_ID):
        return None
    if application != APPLICATION_ID:
        raise _not_a_ledger(path, "is a database of another program")
    if version != FORMAT:
        raise _not_a_ledger(path, f"has ledger format {version}, this version reads {FORMAT}")
    found = connection.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
    if found is None:
        raise _not_a_ledger(path, "names no run")
    return cast("dict[str, object]", json.loads(found[0]))


def _differences(stored: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    return [
        f"{key}: {_show(stored, key)} there, {_show(wanted, key)} now"
        for key in sorted(stored.keys() | wanted.keys())
        if _show(stored, key) != _show(wanted, key)
    ]


def _show(identity: Mapping[str, object], key: str) -> str:
    return json.dumps(identity[key], sort_keys=True, ensure_ascii=False) if key in identity else "unset"


def _not_a_ledger(path: Path, why: str) -> UsageError:
    return UsageError(f"{path}: {why}: --fresh starts over, or give another --out")


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """SQLite's errors that a user can mend, as one line."""
    try:
        yield
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF  # the primary code of an extended one
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _not_a_ledger(path, f"is damaged or no ledger ({error})") from error
        if code == sqlite3.SQLITE_FULL:
            raise disk_full(path.parent) from error
        if code == sqlite3.SQLITE_BUSY:
            raise MachineError(f"{path}: held by another program: close that, then run again") from error
        if code in (
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_PERM,
        ):
            raise MachineError(f"{path}: cannot be read or written ({error}): check the folder") from error
        raise
