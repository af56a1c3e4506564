"""discover -> decode -> cascade -> write -> commit, joined so that memory does not grow with the files.

A block of ring slots goes round: the feeder fills it with files, decode workers with pixels, a scoring
thread has it scored where it lies and hands it back as soon as nobody needs its pixels. What was found goes
to a writer thread, which writes the masks. As a block is in one place at a time, the ring's size bounds what
is before the scorers; the queues behind them have bounds of their own. The thread that called commits rows to
the ledger, and is the only one that does.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from engine.cascade import Scores
from engine.ledger import SliceRow
from engine.ring import DecodedBlock, Ring
from engine.rows import RowWriter
from engine.scorer import Scorer
from engine.sources.discovery import SourceFile, Unlisted
from engine.sources.entries import pages_of
from engine.watch.busy import Busy

WRITERS = 2
"""Threads that write masks; encoding and writing leave the interpreter lock."""
SCORED_AHEAD = 8
"""Scored blocks that may wait for a writer."""
COMMIT_ROWS = 512
COMMIT_SECONDS = 0.5
"""Rows wait for one transaction until there are this many, or this long: a transaction is a disk flush."""
_TICK = 0.1
"""Seconds after which a waiting thread looks whether the run is over."""

Item = TypeVar("Item")


@dataclass(slots=True)
class Totals:
    """What this call did: slices by outcome, monotonic times in seconds, and how busy its stages were."""

    ok: int = 0
    quarantined: int = 0
    has_mask: int = 0
    started: float = 0.0
    ended: float = 0.0
    busy: Busy = field(default_factory=Busy)

    @property
    def slices(self) -> int:
        """Scored and quarantined."""
        return self.ok + self.quarantined

    @property
    def seconds(self) -> float:
        """First slice read to last row committed."""
        return self.ended - self.started

    def add(self, rows: list[SliceRow]) -> None:
        """Count committed rows."""
        for row in rows:
            self.ok += row.status == "ok"
            self.quarantined += row.status == "quarantined"
            self.has_mask += row.has_mask == 1
        self.ended = time.monotonic()


class Keeper(Protocol):
    """Where rows are kept: the ledger, or on a cluster the way to it."""

    def commit(self, rows: Sequence[SliceRow]) -> None:
        """Keep `rows` for good. Raises MachineError where that cannot be."""


@dataclass(slots=True)
class Pipeline:
    """One run's moving parts. `run` returns when everything is committed, or when `stop` asked it to.

    Args:
        entries: files still to score, in order; may raise, which ends the run after what is under way. None
            says that there are no more for now, and what waits for its block to fill is scored as it is.
        ring, scorer, writer, ledger: open, and closed by the caller. Each seat of the scorer gets a thread.
        stop: set by the caller to end early: what is under way is finished and committed.
        on_tick: called by the thread that called `run`, each COMMIT_SECONDS and after each transaction.
        on_commit: called by that thread with the rows of each transaction. The run waits for it.
        on_pages: called with a picture that turned out to have so many pages, before any of their rows.
        on_decoded: called with each block, of whose files only those with pages will be read again.
        hold: how long rows wait for one transaction, in seconds.
        hurries: whether the first rows have one by themselves at once, as somebody waits for them.
    """

    entries: Iterator[SourceFile | Unlisted | None]
    ring: Ring
    scorer: Scorer
    writer: RowWriter
    ledger: Keeper
    block_size: int
    stop: threading.Event
    on_tick: Callable[[Totals], None]
    on_commit: Callable[[list[SliceRow]], None] = lambda _: None
    on_pages: Callable[[SourceFile, int], None] = lambda *_: None
    on_decoded: Callable[[DecodedBlock], None] = lambda _: None
    hold: float = field(default_factory=lambda: COMMIT_SECONDS)
    hurries: bool = True
    totals: Totals = field(default_factory=Totals)
    exhausted: bool = False
    _scored: queue.Queue[tuple[DecodedBlock, Scores]] = field(
        default_factory=lambda: queue.Queue(SCORED_AHEAD)
    )
    _rows: queue.Queue[list[SliceRow]] = field(default_factory=lambda: queue.Queue(64))
    _over: threading.Event = field(default_factory=threading.Event)
    _fed: threading.Event = field(default_factory=threading.Event)
    _batches: int = 0
    _undecoded: int = 0
    _several: deque[tuple[SourceFile, int]] = field(default_factory=deque)
    _decoding: threading.Condition = field(default_factory=threading.Condition)
    _errors: list[BaseException] = field(default_factory=list)

    def run(self) -> Totals:
        """Work until done. Raises the first error that any part met, after committing what was scored."""
        self.totals.started = self.totals.ended = time.monotonic()
        self.totals.busy.hands.update(score=self.scorer.seats, write=WRITERS, commit=1)
        threads = [threading.Thread(target=self._guard, args=(self._feed,), name="feeder")]
        threads += [
            threading.Thread(target=self._guard, args=(self._score,), name=f"scorer{i}")
            for i in range(self.scorer.seats)
        ]
        threads += [
            threading.Thread(target=self._guard, args=(self._write,), name=f"writer{i}")
            for i in range(WRITERS)
        ]
        for thread in threads:
            thread.start()
        try:
            held = self._commit()
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        while not self._rows.empty():
            held += self._rows.get_nowait()
        self._commit_rows(held)
        if self._errors:
            raise self._errors[0]
        return self.totals

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # carried to the caller's thread
            self._errors.append(error)
            if work != self._feed:
                self._over.set()
        finally:
            if work == self._feed:
                self._fed.set()

    def _feed(self) -> None:
        """Fill blocks with files, and with the pages of those that turn out to have several.

        An error here lets what is under way finish first.
        """
        waiting: list[SourceFile] = []
        for entry in self.entries:
            if isinstance(entry, Unlisted):
                self._put(self._rows, [self.writer.unlisted_row(entry)])
                self._batches += 1
            elif entry is not None:
                self._add(entry, waiting)
            if self._several:
                self._add_pages(waiting)
            if entry is None:
                self._submit(waiting)
            if self.stop.is_set() or self._over.is_set():
                return
        self._submit(waiting)
        while not self._all_decoded() and not self._over.is_set():
            if self._several and self.stop.is_set():
                return
            self._add_pages(waiting)
            self._submit(waiting)
        self.exhausted = not self._over.is_set()

    def _add(self, file: SourceFile, waiting: list[SourceFile]) -> None:
        waiting.append(file)
        if len(waiting) == self.block_size:
            self._submit(waiting)

    def _add_pages(self, waiting: list[SourceFile]) -> None:
        while self._several and not self._over.is_set():
            for page in pages_of(*self._several.popleft()):
                self._add(page, waiting)

    def _submit(self, files: list[SourceFile]) -> None:
        """Have `files` decoded and clear the list."""
        while files and not self._over.is_set():
            block = self.ring.acquire(_TICK)
            if block is not None:
                self._batches += 1
                with self._decoding:
                    self._undecoded += 1
                self.ring.submit(block, files)
                files.clear()

    def _all_decoded(self) -> bool:
        """Whether no block is left that may tell of pages, within a tick."""
        with self._decoding:
            self._decoding.wait_for(lambda: self._several or not self._undecoded, _TICK)
            return not self._several and not self._undecoded

    def _score(self) -> None:
        while not self._over.is_set():
            block = self.ring.completed(_TICK)
            if block is None:
                continue
            valid = np.array([piece.failure is None for piece in block.slices])
            several = [(piece.file, piece.pages) for piece in block.slices if piece.pages]
            for file, pages in several:
                self.on_pages(file, pages)
            self.on_decoded(block)
            with self._decoding:
                self._several.extend(several)
                self._undecoded -= 1
                self._decoding.notify()
            with self.totals.busy.at("score"):
                scores = self.scorer.score(block, valid, self._copied(block))
            self._put(self._scored, (block, scores))

    def _copied(self, block: DecodedBlock) -> Callable[[], None]:
        """What to do when the scorer is done with a block's pixels: overlays need them longer."""
        return (lambda: None) if self.writer.overlays else partial(self.ring.release, block.block)

    def _write(self) -> None:
        """Write the masks of what is scored; when the run is over, of what was by then."""
        while not (self._over.is_set() and self._scored.empty()):
            try:
                block, scores = self._scored.get(timeout=_TICK)
            except queue.Empty:
                continue
            with self.totals.busy.at("write"):
                rows = self.writer.write_block(block, scores)
            if self.writer.overlays:
                self.ring.release(block.block)
            self._put(self._rows, rows)

    def _put(self, to: queue.Queue[Item], item: Item) -> None:
        """Hand `item` on; when the run is over, if there is room."""
        while True:
            is_last = self._over.is_set()
            try:
                to.put(item, timeout=0.0 if is_last else _TICK)
                return
            except queue.Full:
                if is_last:
                    return

    def _commit(self) -> list[SliceRow]:
        """Gather rows and commit them, until every batch that was fed has come out; those that are left."""
        done = 0
        held: list[SliceRow] = []
        since = time.monotonic()
        while not (self._fed.is_set() and done == self._batches) and not self._over.is_set():
            try:
                held += self._rows.get(timeout=_TICK)
                done += 1
            except queue.Empty:
                pass
            is_first = bool(held) and not self.totals.slices
            if (
                (is_first and self.hurries)
                or len(held) >= COMMIT_ROWS
                or time.monotonic() - since >= self.hold
            ):
                self._commit_rows(held)
                held, since = [], time.monotonic()
        return held

    def _commit_rows(self, rows: list[SliceRow]) -> None:
        if rows:
            with self.totals.busy.at("commit"):
                self.ledger.commit(rows)
            self.totals.add(rows)
            self.on_commit(rows)
        self.on_tick(self.totals)
