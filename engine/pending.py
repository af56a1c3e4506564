"""What a run still has to score: the input walked beside the ledger, both in the same order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from engine.errors import UsageError
from engine.ledger import Known, Ledger
from engine.sources.discovery import SourceFile, Unlisted

PAGE = 4096
"""Slices of the ledger that are held at a time."""


@dataclass(slots=True)
class Pending:
    """Iterates over the files that have no final row yet; memory does not grow with their number.

    A scored file that changed or vanished ends the walk with a `UsageError` that names it. A quarantined one
    is given again when its failure was transient, when it changed since, or with `retry`; one that is gone
    loses its row (kept without `forgets`). A file whose row was damaged is given as if it had none. With
    `limit` the walk ends after that many files of the input, scored or not. `stop` ends it early; `finished`
    tells that it came to its end.
    """

    entries: Iterable[SourceFile | Unlisted]
    ledger: Ledger
    retry: bool = False
    limit: int | None = None
    forgets: bool = True
    stop: threading.Event = field(default_factory=threading.Event)
    seen: int = 0
    finished: bool = False
    _known: deque[Known] = field(default_factory=deque)
    _after: bytes = b""
    _at_end: bool = False

    def __iter__(self) -> Iterator[SourceFile | Unlisted]:
        for entry in islice(self.entries, self.limit):
            if self.stop.is_set():
                return
            self.seen += 1
            self._pass_by(entry.order)
            if self._is_pending(entry, self._take(entry.order)):
                yield entry
        if self.stop.is_set():  # the walk may have been cut short by it
            return
        if self.limit is None or self.seen < self.limit:
            self._pass_by(None)
        self.finished = True

    def _is_pending(self, entry: SourceFile | Unlisted, known: list[Known]) -> bool:
        if any(row.status == "damaged" for row in known):
            self._forget([row.order for row in known])
            return True
        if not known:
            return True
        if known[0].image_path != entry.image_path:  # a list whose lines moved
            if any(row.status == "ok" for row in known):
                raise _refused(known[0], "was scored and is gone", f"{entry.image_path} has its place now")
            return True
        if isinstance(entry, Unlisted):
            if known[0].status == "ok":
                raise _refused(known[0], "can no longer be read", entry.failure.message)
            return known[0].transient or self.retry
        changed = (entry.size, entry.mtime_ns) != (known[0].size, known[0].mtime_ns)
        if any(row.status == "ok" for row in known):
            if changed:
                raise _refused(known[0], "changed since it was scored", "its size or time is another")
            return False
        return changed or self.retry or any(row.transient for row in known)

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
