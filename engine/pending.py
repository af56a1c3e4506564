"""What a run still has to score: the input walked beside the ledger, both in the same order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from engine.errors import SliceError, UsageError
from engine.ledger import Known, Ledger
from engine.sources.discovery import SourceFile, Unlisted
from engine.sources.entries import pages_of
from engine.sources.files import read_file
from engine.sources.tiff import page_directories
from engine.sources.volumes import Volume
from engine.stop import StoppedError

PAGE = 4096
"""Slices of the ledger that are held at a time."""


@dataclass(slots=True)
class Pending:
    """Iterates over the slices that have no final row yet; memory does not grow with their number.

    A scored file that changed or vanished ends the walk with a `UsageError` that names it, and so does a
    scored volume of which a file changed, came or went, where that changes how all of it is shown to the
    models. A quarantined slice is given again when its failure was transient, when its file changed since, or
    with `retry`; one that is gone loses its row (kept without `forgets`). A file of which a row was damaged
    is given as if it had none. With `limit` the walk ends after that many slices of the input, scored or not
    (a picture that has pages is one of them). `stop` ends it early; `finished` tells that it came to its end.
    `read` gives the bytes of a file.
    """

    entries: Iterable[SourceFile | Unlisted]
    ledger: Ledger
    retry: bool = False
    limit: int | None = None
    forgets: bool = True
    stop: threading.Event = field(default_factory=threading.Event)
    read: Callable[[bytes], bytes] = read_file
    seen: int = 0
    finished: bool = False
    _at: bytes = b""
    _rows: dict[int, Known] = field(default_factory=dict)
    _volume: Volume | None = None
    _known: deque[Known] = field(default_factory=deque)
    _after: bytes = b""
    _at_end: bool = False

    def __iter__(self) -> Iterator[SourceFile | Unlisted]:
        with suppress(StoppedError):  # a walk that waits for something may be ended while it does
            yield from self._walk()

    def _walk(self) -> Iterator[SourceFile | Unlisted]:
        for entry in islice(self.entries, self.limit):
            if self.stop.is_set():
                return
            self.seen += 1
            if entry.order != self._at:  # the next file; slices of one file follow each other
                self._at = entry.order
                self._pass_by(entry.order)
                self._rows = self._standing(entry, self._take(entry.order))
            if isinstance(entry, SourceFile) and (self._rows or entry.source is not None):
                yield from self._left(entry)
            elif self._is_pending(entry):
                yield entry
        if self.stop.is_set():  # the walk may have been cut short by it
            return
        if self.limit is None or self.seen < self.limit:
            self._pass_by(None)
        self.finished = True

    def _left(self, entry: SourceFile) -> Iterator[SourceFile]:
        """The slice, if it is still to be scored; of a picture that has pages, each page that is."""
        slices = [entry]
        if entry.source is not None:
            self._expect_volume(entry, entry.source)
        elif any(row.volume == row.image_path for row in self._rows.values()):
            slices = self._pages(entry)
        yield from filter(self._is_pending, slices)

    def _is_pending(self, entry: SourceFile | Unlisted) -> bool:
        row = self._rows.get(entry.slice if isinstance(entry, SourceFile) else 0)
        return row is None or (row.status != "ok" and (self.retry or row.transient))

    def _standing(self, entry: SourceFile | Unlisted, known: list[Known]) -> dict[int, Known]:
        """What is known of a file's slices and still holds, by their numbers. Raises UsageError."""
        if not known:
            return {}
        scored = any(row.status == "ok" for row in known)
        if any(row.status == "damaged" for row in known):
            pass
        elif known[0].image_path != entry.image_path:  # a list whose lines moved
            if scored:
                raise _refused(known[0], "was scored and is gone", f"{entry.image_path} has its place now")
        elif isinstance(entry, Unlisted):
            if scored:
                raise _refused(known[0], "can no longer be read", entry.failure.message)
            return {row.slice: row for row in known}
        elif (entry.size, entry.mtime_ns) == (known[0].size, known[0].mtime_ns):
            return {row.slice: row for row in known}
        elif scored:
            raise _refused(known[0], "changed since it was scored", "its size or time is another")
        self._forget([entry.order])
        return {}

    def _expect_volume(self, entry: SourceFile, source: Volume) -> None:
        """Refuse a scored volume whose other files are not what its window or channels were made of."""
        if source is self._volume:
            return
        self._volume = source
        if not source.fingerprint:
            return
        key = f"volume {source.order.hex()}"
        if self.ledger.get_meta(key) == source.fingerprint:
            return
        scored = next((row for row in self._rows_below(source.order) if row.status == "ok"), None)
        if scored is not None:
            why = f"files of {entry.volume} changed, came or went, and its window is taken of all"
            raise _refused(scored, "was scored with other files", why)
        if self.forgets:
            self.ledger.set_meta(key, source.fingerprint)

    def _rows_below(self, order: bytes) -> Iterator[Known]:
        """What the ledger has of files whose orders begin with `order`."""
        after = order[:-1]
        while page := self.ledger.known(after, PAGE):
            for row in page:
                if row.order.startswith(order):
                    yield row
                elif row.order > order:
                    return
            after = page[-1].order

    def _pages(self, entry: SourceFile) -> list[SourceFile]:
        """The pages of a picture of which some are known. Raises UsageError where they cannot be counted."""
        try:
            return pages_of(entry, len(page_directories(self.read(entry.path))))
        except SliceError as error:
            row = next(iter(self._rows.values()))
            raise _refused(row, "can no longer be read", error.failure.message) from None

    def _pass_by(self, order: bytes | None) -> None:
        """Deal with the ledger's files that the input no longer has before `order` (None: at its end)."""
        gone = []
        while (row := self._peek()) is not None and (order is None or row.order < order):
            if row.status == "ok":
                raise _refused(row, "was scored and is gone", "it is not in the input any more")
            gone += [known.order for known in self._take(row.order)]
        self._forget(gone)

    def _forget(self, orders: list[bytes]) -> None:
        if orders and self.forgets:
            self.ledger.forget(orders)

    def _take(self, order: bytes) -> list[Known]:
        rows = []
        while (row := self._peek()) is not None and row.order == order:
            rows.append(self._known.popleft())
        return rows

    def _peek(self) -> Known | None:
        # The next page is read as soon as the last row of this one is taken, before any file behind it is
        # given; once at its end the ledger is not asked again. So rows of this very call are never met.
        if not self._known and not self._at_end:
            self._known.extend(self.ledger.known(self._after, PAGE))
            self._at_end = not self._known
            if self._known:
                self._after = self._known[-1].order
        return self._known[0] if self._known else None


def _refused(row: Known, what: str, why: str) -> UsageError:
    return UsageError(
        f"{row.image_path} {what} ({why}): "
        "put it back as it was, give another --out, or start over with --fresh"
    )
