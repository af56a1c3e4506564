"""The ledger's SQLite file: made, opened, checked, and its errors told as lines that a user can act on.

A file is trusted only after it was looked through: that it has exactly the schema that this version writes
(no trigger, no view of somebody else's), then every page by SQLite's quick_check (0.4 s a million rows). What
SQLite cannot see, a bit that changed within a row, the row's own checksum tells.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar, cast

from engine.disk import cannot_write, disk_full, patiently
from engine.errors import MachineError, UsageError

APPLICATION_ID: Final = 0x54534C47  # "TSLG": tells a ledger from any other SQLite file
FORMAT: Final = 3  # stored as user_version; another one is refused
BUSY_TIMEOUT_S: Final = 30.0  # how long a commit waits for a reader, such as a database browser

_TABLES: Final = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE slices (
    ord BLOB NOT NULL,
    slice INTEGER NOT NULL,
    volume TEXT NOT NULL,
    image_path TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'quarantined')),
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    tumor_probability REAL,
    has_mask INTEGER,
    stem BLOB NOT NULL,
    mask_path TEXT NOT NULL,
    mask_rle TEXT NOT NULL,
    probability_path TEXT NOT NULL,
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
    checksum INTEGER NOT NULL,
    PRIMARY KEY (ord, slice)
) WITHOUT ROWID""",
)
TEMPORARY: Final = f"""
CREATE TEMP TABLE stacks (
    volume TEXT, ord BLOB, slice INTEGER, PRIMARY KEY (volume, ord, slice)
) WITHOUT ROWID;
CREATE TEMP TABLE firsts (ord BLOB, slice INTEGER, volume TEXT, PRIMARY KEY (ord, slice)) WITHOUT ROWID;
{_TABLES[1].replace("CREATE TABLE slices", "CREATE TEMP TABLE overruled")};
"""
"""Tables of one connection, among SQLite's temporary files: rows by volume, and rows overruled."""
_PASSING: Final = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL)
"""Primary codes of what a network disk may say once and not again."""
_DAMAGE: Final = (0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_READ_BYTES: Final = 2**20
_READ_AHEAD_BYTES: Final = 2**30
"""Of a larger file the first pages may be out of memory again when SQLite comes to them."""

T = TypeVar("T")


def checksum(values: tuple[object, ...]) -> int:
    """The CRC-32 of a row's other values, as SQLite gives them back."""
    return zlib.crc32(repr(values).encode("utf-8", "surrogateescape"))


def connect(path: Path, mode: Literal["ro", "rw", "rwc"]) -> sqlite3.Connection:
    """Open the file. Nothing in it is believed: no function that its schema names is run."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for pragma in ("synchronous = FULL", "trusted_schema = OFF", "cell_size_check = ON"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def create_or_check(connection: sqlite3.Connection, path: Path, identity: Mapping[str, object]) -> None:
    """Make the tables of a new ledger; look through one that is there, whose run has the same `identity`.

    Raises UsageError for a file that is damaged or no ledger, and for another identity.
    """
    wanted = json.dumps(dict(identity), sort_keys=True)
    stored = read_identity(connection, path)
    connection.execute("PRAGMA journal_mode = DELETE")
    if stored is None:
        connection.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
            f"{';'.join(_TABLES)};"
        )
        write_meta(connection, "identity", wanted)
        connection.commit()
        return
    if changes := _differences(stored, cast("dict[str, object]", json.loads(wanted))):
        raise UsageError(
            f"{path.parent} holds a run with other options ({'; '.join(changes)}): "
            "repeat those, give another --out, or start over with --fresh"
        )
    # SQLite goes from page to page, for each of which a disk that has not read them lately may be asked anew.
    with suppress(OSError):
        if path.stat().st_size <= _READ_AHEAD_BYTES:
            _read_through(path)
    for _ in range(2):  # a disk that fails to read once looks like damage, once
        ((found,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
        if found == "ok":
            return
        _expect_readable(path)
    raise damaged(path, " ".join(str(found).split()))


def read_identity(connection: sqlite3.Connection, path: Path) -> dict[str, object] | None:
    """The stored identity; None when the file is empty: new, or its creation was killed."""
    ((application,),) = connection.execute("PRAGMA application_id").fetchall()
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    schema = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master ORDER BY name")]
    if not schema and application in (0, APPLICATION_ID):
        return None
    if application != APPLICATION_ID:
        raise not_a_ledger(path, "is a database of another program")
    if version != FORMAT:
        raise not_a_ledger(path, f"has ledger format {version}, this version reads {FORMAT}")
    if schema != list(_TABLES):
        raise damaged(path, "its tables are not those of a ledger")
    identity = read_meta(connection, "identity")
    if not isinstance(identity, dict):
        raise damaged(path, "it names no run")
    return identity


def read_meta(connection: sqlite3.Connection, key: str) -> object:
    """The JSON value kept under `key`; None where there is none, or another than was written."""
    found = connection.execute("SELECT value, checksum FROM meta WHERE key = ?", (key,)).fetchone()
    return json.loads(found[0]) if found and checksum((key, found[0])) == found[1] else None


def write_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Keep a JSON text under `key`, in the transaction that is open."""
    row = (key, value, checksum((key, value)))
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", row)


def peek(path: Path, look: Callable[[sqlite3.Connection], T]) -> T:
    """What `look` finds in the file, without a lock and changing nothing.

    Only after a run that was killed within a transaction is the file opened for writing, because SQLite has
    to roll that transaction back before anything can be read. Raises as `plain_errors` does.
    """

    def looked(mode: Literal["ro", "rw"]) -> T:
        with closing(connect(path, mode)) as connection:
            return look(connection)

    with plain_errors(path):
        try:
            return persistently(lambda: looked("ro"))
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            return persistently(lambda: looked("rw"))


def persistently(work: Callable[[], T]) -> T:
    """Do `work` on the file; again after a while where its disk fails, and once more where it seems damaged.

    SQLite cannot tell a page that is damaged from one that the disk could not read just then.
    """

    def look_twice() -> T:
        try:
            return work()
        except sqlite3.DatabaseError as error:
            if _primary(error) != sqlite3.SQLITE_CORRUPT:
                raise
        return work()

    return patiently(
        look_twice, lambda error: isinstance(error, sqlite3.Error) and _primary(error) in _PASSING
    )


def delete(path: Path) -> None:
    """Delete a ledger, then its journal (SQLite drops a lone journal, but trusts a file without one)."""
    try:
        for each in (path, path.with_name(f"{path.name}-journal")):
            patiently(partial(each.unlink, missing_ok=True))
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def plain_errors(path: Path, *, at_work: bool = False, in_temporary: bool = False) -> Iterator[None]:
    """SQLite's errors as one line each: a UsageError for damage, a MachineError for a disk that fails.

    `at_work` the file was sound a moment ago: then the same command, which looks it through, is to tell.
    `in_temporary` tables only is anything written.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = _primary(error)
        if code == sqlite3.SQLITE_FULL:
            raise disk_full(_temporary_folder() if in_temporary else path.parent) from error
        if code == sqlite3.SQLITE_BUSY:
            raise MachineError(f"{path}: held by another program: close that, then run again") from error
        if code in (*_PASSING, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            raise MachineError(f"{path}: cannot be read or written ({error}): check the folder") from error
        # Text that is no UTF-8 (no code) and tables that are not there are damage: every statement is ours.
        if code not in _DAMAGE or type(error) not in (sqlite3.DatabaseError, sqlite3.OperationalError):
            raise
        _expect_readable(path)
        if at_work:
            raise MachineError(
                f"{path}: was damaged meanwhile ({error}): run the same command again"
            ) from error
        raise damaged(path, str(error)) from error


def damaged(path: Path, what: str) -> UsageError:
    """The error of a ledger that cannot be continued."""
    return not_a_ledger(path, f"is damaged or no ledger ({what})")


def not_a_ledger(path: Path, why: str) -> UsageError:
    """The error of a file that is there and cannot be used as a ledger."""
    return UsageError(f"{path}: {why}: --fresh starts over, or give another --out")


def _read_through(path: Path) -> None:
    """Read the file from its start. Raises OSError. Not while a transaction is open: its locks would go."""
    with path.open("rb", buffering=0) as file:
        while file.read(_READ_BYTES):
            pass


def _expect_readable(path: Path) -> None:
    """Tell a disk that cannot read the file, which SQLite takes for damage too, from damage."""
    try:
        _read_through(path)
    except FileNotFoundError:
        return
    except OSError as error:
        reason = error.strerror or errno.errorcode.get(error.errno or 0, "")
        raise MachineError(f"{path}: cannot be read ({reason}): check its disk, then run again") from error


def _temporary_folder() -> Path:
    """Where SQLite puts temporary tables that outgrow its memory. https://www.sqlite.org/tempfiles.html"""
    named = filter(None, map(os.environ.get, ("SQLITE_TMPDIR", "TMPDIR")))
    usable = (each for each in (*named, "/var/tmp", "/usr/tmp", "/tmp") if os.access(each, os.W_OK | os.X_OK))
    return Path(next(usable, "."))


def _primary(error: sqlite3.Error) -> int:
    """The primary code of an extended one; 0 for errors of the module itself."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _differences(stored: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    return [
        f"{key}: {_show(stored, key)} there, {_show(wanted, key)} now"
        for key in sorted(stored.keys() | wanted.keys())
        if _show(stored, key) != _show(wanted, key)
    ]


def _show(identity: Mapping[str, object], key: str) -> str:
    return json.dumps(identity[key], sort_keys=True, ensure_ascii=False) if key in identity else "unset"
