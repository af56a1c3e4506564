"""What a run still has to score: the input walked beside the ledger, both in the same order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from operator import eq

from engine.errors import SliceError, UsageError
from engine.ledger import Known, Ledger
from engine.ledger_rows import KnownRow
from engine.sources.discovery import SourceFile, Unlisted
from engine.sources.entries import pages_of
from engine.sources.files import read_file
from engine.sources.stretches import Stretch
from engine.sources.tiff import page_directories
from engine.sources.volumes import Volume
from engine.stop import StoppedError

PAGE = 1024
"""Slices of the ledger that are held at a time."""
VOLUME_NOTES = "volume "
"""What the ledger's notes begin with that tell what a volume's window was taken of."""


@dataclass(slots=True)
class Pending:
    """Iterates over the slices that have no final row yet; memory does not grow with their number.

    A scored file that changed or vanished ends the walk with a `UsageError` that names it, and so does a
    scored volume of which a file changed, came or went, where that changes how all of it is shown to the
    models. A quarantined slice is given again when its failure was transient, when its file changed since, or
    with `retry`; one that is gone loses its row (kept without `forgets`). A file of which a row was damaged
    is given as if it had none, in its turn. With `limit` the walk ends after that many slices of the input,
    scored or not (a picture that has pages is one of them). `stop` ends it early; `finished` tells that it
    came to its end. `read` gives the bytes of a file.

    `again` walks the input too, as often as is asked, and may give stretches of it first. With it, those
    that are scored are passed over together, and rows are looked through last: the first new slice is there
    in a fraction of the time, and files whose rows were damaged are given behind all others.
    """

    entries: Iterable[SourceFile | Unlisted]
    ledger: Ledger
    retry: bool = False
    limit: int | None = None
    forgets: bool = True
    again: Callable[[], Iterable[SourceFile | Unlisted | Stretch]] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    read: Callable[[bytes], bytes] = read_file
    seen: int = 0
    finished: bool = False
    _damaged: set[bytes] = field(default_factory=set)
    _at: bytes = b""
    _rows: dict[int, Known] = field(default_factory=dict)
    _volume: Volume | None = None
    _known: deque[KnownRow] = field(default_factory=deque)
    _after: bytes = b""
    _at_end: bool = False

    def __iter__(self) -> Iterator[SourceFile | Unlisted]:
        with suppress(StoppedError):  # a walk that waits for something may be ended while it does
            yield from self._walk()

    def _walk(self) -> Iterator[SourceFile | Unlisted]:
        if self.again is None:
            self._damaged = self.ledger.damaged()
        in_full = self.entries if self.again is None or self.limit is not None else self.again()
        for entry in islice(in_full, self.limit):
            if self.stop.is_set():
                return
            if isinstance(entry, Stretch):
                entry.passed = self._pass_over(entry)
                continue
            self.seen += 1
            if entry.order != self._at:  # the next file; slices of one file follow each other
                self._at = entry.order
                self._pass_by(entry.order)
                self._rows = self._standing(entry, self._take(entry.order))
                if isinstance(entry, Unlisted):
                    self._expect_nothing_below(entry)
            if isinstance(entry, SourceFile) and (self._rows or entry.source is not None):
                yield from self._left(entry)
            elif self._is_pending(entry):
                yield entry
        if self.stop.is_set():  # the walk may have been cut short by it
            return
        if self.limit is None or self.seen < self.limit:
            self._pass_by(None)
        else:  # behind the limit too, as the tables have all rows
            self._forget([order for order in self._damaged if order > self._at])
        if self.again is not None:
            yield from self._damaged_ones(self.again())
        self.finished = not self.stop.is_set()

    def _pass_over(self, stretch: Stretch) -> int:
        """How many files the stretch begins with that the ledger's next rows have, scored and as they are."""
        row = self._peek()
        stretch.is_last = row is None
        if row is None or row.order != stretch.first:
            return 0
        self._read_ahead(len(stretch.names) + 1)
        expected = stretch.as_scored()
        passed = [*map(eq, self._known, expected), False].index(False)
        behind = next(islice(self._known, passed, None), None)
        if passed and behind is not None and behind[0] == expected[passed - 1][0]:
            passed -= 1  # the file has more slices
        for _ in range(passed):
            self._known.popleft()
        self.seen += passed
        return passed

    def _damaged_ones(
        self, entries: Iterable[SourceFile | Unlisted | Stretch]
    ) -> Iterator[SourceFile | Unlisted]:
        """The files of damaged rows that were passed over, now that all rows are looked through."""
        damaged = self.ledger.damaged() - self._damaged
        self._forget(damaged)
        if not damaged:
            return
        for entry in entries:
            if self.stop.is_set():
                return
            if not isinstance(entry, Stretch) and entry.order in damaged:
                yield entry

    def _left(self, entry: SourceFile) -> Iterator[SourceFile]:
        """The slice, if it is still to be scored; of a picture that has pages, each page that is."""
        slices = [entry]
        if entry.source is not None:
            self._expect_volume(entry, entry.source)
            if entry.order in self._damaged:  # what that looked at may have been this file's
                self._start_over(entry)
        elif any(row.volume == row.image_path for row in self._rows.values()):
            slices = self._pages(entry)
        yield from filter(self._is_pending, slices)

    def _is_pending(self, entry: SourceFile | Unlisted) -> bool:
        row = self._rows.get(entry.slice if isinstance(entry, SourceFile) else 0)
        return row is None or (row.status != "ok" and (self.retry or row.transient == 1))

    def _standing(self, entry: SourceFile | Unlisted, known: list[Known]) -> dict[int, Known]:
        """What is known of a file's slices and still holds, by their numbers. Raises UsageError."""
        if not known:
            return {}
        if entry.order not in self._damaged:
            # Of each row: a file may have been changed while a run was at its slices.
            changed = [(row, why) for row in known if (why := _difference(entry, row)) is not None]
            if not changed:
                return {row.slice: row for row in known}
            scored = next(((row, why) for row, why in changed if row.status == "ok"), None)
            if scored is not None and not self._is_damaged(entry.order):
                raise _refused(scored[0], *scored[1])
        self._forget([entry.order])
        return {}

    def _start_over(self, entry: SourceFile) -> None:
        """Have every slice of a file scored again."""
        if self._rows:
            self._forget([entry.order])
            self._rows = {}

    def _expect_nothing_below(self, entry: Unlisted) -> None:
        """Refuse a folder that cannot be looked into any more, where the next row is of a file in it."""
        row = self._peek()
        if row is None or row.status != "ok" or not row.order.startswith(entry.order):
            return
        if not self._is_damaged(row.order):
            why = f"{entry.image_path}: {entry.failure.message}"
            raise _refused(row, "was scored and its folder can no longer be read", why)

    def _expect_volume(self, entry: SourceFile, source: Volume) -> None:
        """Refuse a scored volume whose other files are not what its window or channels were made of."""
        if source is self._volume:
            return
        self._volume = source
        if not source.fingerprint:
            return
        key = f"{VOLUME_NOTES}{source.order.hex()}"
        if self.ledger.get_meta(key) == source.fingerprint:
            return
        rows = self._rows_below(source.order)
        scored = next((row for row in rows if row.status == "ok" and not self._is_damaged(row.order)), None)
        if scored is not None:
            why = f"files of {entry.volume} changed, came or went, and its window is taken of all"
            raise _refused(scored, "was scored with other files", why)
        if self.forgets:
            self.ledger.set_meta(key, source.fingerprint)

    def _rows_below(self, order: bytes) -> Iterator[Known]:
        """What the ledger has of files whose orders begin with `order`."""
        after = order[:-1]
        while page := self.ledger.known(after, PAGE):
            for row in map(Known._make, page):
                if row.order.startswith(order):
                    yield row
                elif row.order > order:
                    return
            after = page[-1][0]

    def _pages(self, entry: SourceFile) -> list[SourceFile]:
        """The pages of a picture of which some are known. Raises UsageError where they cannot be counted."""
        try:
            return pages_of(entry, len(page_directories(self.read(entry.path))))
        except SliceError as error:
            scored = next((row for row in self._rows.values() if row.status == "ok"), None)
            if scored is not None:
                raise _refused(scored, "can no longer be read", error.failure.message) from None
            self._start_over(entry)
            return [entry]

    def _pass_by(self, order: bytes | None) -> None:
        """Deal with the ledger's files that the input no longer has before `order` (None: at its end)."""
        gone = []
        while (row := self._peek()) is not None and (order is None or row.order < order):
            scored = next((known for known in self._take(row.order) if known.status == "ok"), None)
            if scored is not None and not self._is_damaged(row.order):
                raise _refused(scored, "was scored and is gone", "it is not in the input any more")
            gone.append(row.order)
            if len(gone) == PAGE:
                self._forget(gone)
                gone = []
        self._forget(gone)

    def _forget(self, orders: Collection[bytes]) -> None:
        if orders and self.forgets:
            self.ledger.forget(orders)

    def _is_damaged(self, order: bytes) -> bool:
        """Whether a row of this file is not what was written; asked before a file is said to be at fault."""
        if order not in self._damaged and self.ledger.is_damaged(order):
            self._damaged.add(order)
        return order in self._damaged

    def _take(self, order: bytes) -> list[Known]:
        rows = []
        while (row := self._peek()) is not None and row.order == order:
            rows.append(row)
            self._known.popleft()
        return rows

    def _peek(self) -> Known | None:
        # The next page is read as soon as the last row of this one is taken, before any file behind it is
        # given; once at its end the ledger is not asked again. So rows of this very call are never met.
        self._read_ahead(1)
        return Known._make(self._known[0]) if self._known else None

    def _read_ahead(self, rows: int) -> None:
        """Have so many rows at hand, if there are."""
        while len(self._known) < rows and not self._at_end:
            page = self.ledger.known(self._after, PAGE)
            self._known.extend(page)
            self._at_end = not page
            if page:
                self._after = page[-1][0]


def _difference(entry: SourceFile | Unlisted, row: Known) -> tuple[str, str] | None:
    """What became of a file since this row was written, and how that is seen; None for nothing."""
    if row.image_path != entry.image_path:  # a list whose lines moved
        return "was scored and is gone", f"{entry.image_path} has its place now"
    if isinstance(entry, Unlisted):
        return ("can no longer be read", entry.failure.message) if row.status == "ok" else None
    if (entry.size, entry.mtime_ns) != (row.size, row.mtime_ns):
        return "changed since it was scored", "its size or time is another"
    return None


def _refused(row: Known, what: str, why: str) -> UsageError:
    return UsageError(
        f"{row.image_path} {what} ({why}): "
        "put it back as it was, give another --out, or start over with --fresh"
    )
