"""A folder's pictures, looked at together: what its files share is made once."""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH118, PTH120

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Final

from engine.ledger_rows import KnownRow
from engine.sources.entries import Entry, SourceFile, safe_text
from engine.sources.files import time_of
from engine.sources.folders import Listing
from engine.sources.keyed_names import KeyedName
from engine.sources.looking import Looking
from engine.sources.statuses import NO_FILE, Statuses, look_at, status_of
from engine.text import shown

LONGEST: Final = 1000
"""Files of a stretch; between two of them a walk can be stopped."""
GIVEN_SINGLY: Final = 16
"""Behind a file that was not passed over, as a new one is seldom alone; the next stretch is as short, and
those behind it twice as long each: what is looked at behind a new file is looked at again."""


@dataclass(slots=True)
class Stretch:
    """Files of one folder on a disk that follow one another, by their names, before they are looked at.

    `odd` are names that are looked at by themselves; `look` gives the statuses of the first of the others.
    Who is given a stretch may set `passed`: the walk goes on behind so many of its files; and `is_last`, if
    no others are wanted.
    """

    folder: Entry
    names: Sequence[KeyedName]
    odd: Collection[bytes]
    look: Callable[[Sequence[bytes]], Statuses] | None = None
    passed: int = 0
    is_last: bool = False

    @property
    def first(self) -> bytes:
        """Where its first file sorts."""
        return self.folder.order + self.names[0][0]

    def as_scored(self) -> list[KnownRow]:
        """What a ledger has of its files if they are scored and still as they were.

        Up to the first name that is odd or no file.
        """
        path, text, volume, order = self._shared()
        pairs = list(takewhile(self._is_usual, self.names) if self.odd else self.names)
        names = [name for _, name in pairs]
        statuses = look_at(path, names) if self.look is None else self.look(names)
        sizes, times = statuses[::2], statuses[1::2]
        if NO_FILE in sizes:
            del sizes[sizes.index(NO_FILE) :]
        texts = shown(b"\0".join(names)).split("\0")
        return [
            (order + key, 0, text + name, volume, "ok", size, mtime_ns, 0)
            for (key, _), name, size, mtime_ns in zip(pairs, texts, sizes, times, strict=False)
        ]

    def _is_usual(self, pair: KeyedName) -> bool:
        return pair[1] not in self.odd

    def entries(self) -> Iterator[SourceFile | Entry]:
        """Its files, and what is yet to be looked at: the same as `Entry.below` and `Entry.file` make."""
        path, text, volume, order = self._shared()
        stem, shown_as = (os.path.join(each, b"") for each in (self.folder.stem, self.folder.shown))
        for key, name in self.names:
            status = None if name in self.odd else status_of(path + name)
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


def stretches(folder: Entry, listing: Listing, looking: Looking) -> Iterator[Stretch | SourceFile | Entry]:
    """What the `names` of a folder's listing stand for; stretches of them first, to be passed over."""
    names, at, length = listing.names, 0, LONGEST
    looks = _Looks(os.path.join(folder.path, b""), listing, looking)
    is_last = False
    while at < len(names) and not is_last:
        if names[at][1] in listing.odd:
            singly = 1
        else:
            stretch = Stretch(folder, names[at : at + length], listing.odd, partial(looks.at, at))
            yield stretch
            looking.passed(stretch.passed)
            at, is_last = at + stretch.passed, stretch.is_last
            if is_last:
                looking.close()
            has_new = stretch.passed < len(stretch.names)
            singly = GIVEN_SINGLY if has_new else 0
            length = GIVEN_SINGLY if has_new else min(2 * length, LONGEST)
        yield from Stretch(folder, names[at : at + singly], listing.odd).entries()
        at += singly
    yield from Stretch(folder, names[at:], listing.odd).entries()


@dataclass(slots=True)
class _Looks:
    """The statuses of a folder's names; of a large one those of the next stretch are had meanwhile."""

    path: bytes
    listing: Listing
    looking: Looking
    _next: int = 0
    _told: Callable[[], Statuses] | None = None

    def at(self, place: int, names: Sequence[bytes]) -> Statuses:
        """The statuses of `names`, of which the first is that at `place`; there may be more behind."""
        if self.listing.statuses is not None:
            return self.listing.statuses[2 * place : 2 * (place + len(names))]
        told = self._told if place == self._next else None
        statuses = told() if told is not None else look_at(self.path, names)
        if self.looking.helps:
            self._next = place + len(names)
            behind = [name for _, name in self.listing.names[self._next : self._next + LONGEST]]
            self._told = self.looking.statuses(self.path, behind)
        return statuses
