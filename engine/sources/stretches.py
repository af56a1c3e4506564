"""A folder's pictures, looked at together: what its files share is made once."""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH116, PTH118, PTH120

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from engine.ledger_rows import KnownRow
from engine.sources.entries import Entry, SourceFile, safe_text
from engine.sources.files import time_of
from engine.sources.folders import Listing
from engine.sources.keyed_names import KeyedName
from engine.text import shown

LONGEST: Final = 1000
"""Files of a stretch; between two of them a walk can be stopped."""
GIVEN_SINGLY: Final = 16
"""Behind a file that was not passed over: a new one is seldom alone."""


@dataclass(slots=True)
class Stretch:
    """Files of one folder on a disk that follow one another, by their names, before they are looked at.

    `odd` are names that are looked at by themselves. Who is given a stretch may set `passed`: the walk goes
    on behind so many of its files.
    """

    folder: Entry
    names: Sequence[KeyedName]
    odd: Container[bytes]
    passed: int = 0

    def as_scored(self) -> list[KnownRow]:
        """What a ledger has of its files if they are scored and still as they were.

        Up to the first name that is odd or no file.
        """
        path, text, volume, order = self._shared()
        found: list[KnownRow] = []
        for key, name in self.names:
            if name in self.odd or (status := _look(path + name)) is None:
                break
            size, mtime_ns = status.st_size, time_of(status)
            found.append((order + key, 0, text + shown(name), volume, "ok", size, mtime_ns, 0))
        return found

    def entries(self) -> Iterator[SourceFile | Entry]:
        """Its files, and what is yet to be looked at: the same as `Entry.below` and `Entry.file` make."""
        path, text, volume, order = self._shared()
        stem, shown_as = (os.path.join(each, b"") for each in (self.folder.stem, self.folder.shown))
        for key, name in self.names:
            status = None if name in self.odd else _look(path + name)
            if status is None:
                yield Entry(path + name, shown_as + name, stem + name, order + key, named=False)
            else:
                yield SourceFile(
                    path + name,
                    text + shown(name),
                    volume,
                    stem + name,
                    order + key,
                    status.st_size,
                    time_of(status),
                )

    def _shared(self) -> tuple[bytes, str, str, bytes]:
        """What paths, image paths and orders of its files begin with, and their volume (third)."""
        text = safe_text(os.path.join(self.folder.shown, b""))
        return os.path.join(self.folder.path, b""), text, os.path.dirname(text) or ".", self.folder.order


def stretches(folder: Entry, listing: Listing) -> Iterator[Stretch | SourceFile | Entry]:
    """What the `names` of a folder's listing stand for; stretches of them first, to be passed over."""
    names, at = listing.names, 0
    while at < len(names):
        stretch = Stretch(folder, names[at : at + LONGEST], listing.odd)
        yield stretch
        at += stretch.passed
        if stretch.passed < len(stretch.names):
            yield from Stretch(folder, names[at : at + GIVEN_SINGLY], listing.odd).entries()
            at += GIVEN_SINGLY


def _look(path: bytes) -> os.stat_result | None:
    """The status of a file; None of what is none, or cannot be looked at: another look tells why."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None
