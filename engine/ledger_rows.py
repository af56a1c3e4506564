"""The ledger's rows: as the run has them, and as SQLite keeps them, each with its checksum."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, TypeVar

from engine.ledger_file import checksum

Status = Literal["ok", "quarantined"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SliceRow:
    """One slice's outcome: its row of results.csv, and of errors.csv when it is quarantined.

    `order` (not empty) is the file's place in the run, `slice` the slice's in the file. `volume`,
    `image_path`, `mask_path` and `probability_path` (below the output folder, "" without such a file) are
    text that UTF-8 can encode; `stem` is where the slice's files lie below masks and other folders, as it is
    on the disk and without its ending. `mask_rle` is the mask as run lengths (see outputs/rle), "" without
    one. `size` (bytes) and `mtime_ns` are the file's when it was read. `has_mask` is 0 or 1; pixels and boxes
    are at the source's size. What was not measured is None.
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
    stem: bytes = b""
    mask_path: str = ""
    mask_rle: str = ""
    probability_path: str = ""
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


KnownRow = tuple[bytes, int, str, str, Status, int, int, int]
"""What `Known` names, as it is read: millions are, and are compared, before the first new slice."""


class Known(NamedTuple):
    """What a continuation needs of a slice that is already in the ledger."""

    order: bytes
    slice: int
    image_path: str
    volume: str
    status: Status
    size: int
    mtime_ns: int
    transient: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Slices in the ledger: scored, quarantined, and scored with a mask."""

    ok: int
    quarantined: int
    has_mask: int


_FIELDS: Final = [field.name for field in fields(SliceRow)]
COLUMNS: Final = ["ord" if name == "order" else name for name in _FIELDS]  # order is a word of SQL
SELECT: Final = f"SELECT {', '.join(COLUMNS)}, checksum FROM slices"
SELECT_PAGE: Final = f"{SELECT} WHERE (ord, slice) > (?, ?) ORDER BY ord, slice LIMIT ?"
_values_of = attrgetter(*_FIELDS[:-1])


def stored(row: SliceRow) -> tuple[Any, ...]:
    """A row's values as SQLite gives them back, and their checksum."""
    values = (*_values_of(row), int(row.transient))
    return (*values, checksum(values))


def is_sound(stored: tuple[object, ...]) -> bool:
    """Whether a row, with its checksum at the end, is what was written."""
    return checksum(stored[:-1]) == stored[-1]


def row_of(stored: tuple[Any, ...]) -> SliceRow:
    """A row that has its checksum at the end."""
    return SliceRow(*(*stored[:-2], bool(stored[-2])))


def reading_any_text(connection: sqlite3.Connection, read: Callable[[], T]) -> T:
    """What `read` reads from `connection`, where text is no UTF-8 too: its row's checksum will tell."""
    try:
        return read()
    except sqlite3.OperationalError as error:
        if "UTF-8" not in str(error):
            raise
        connection.text_factory = _any_text
        return read()


def _any_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
