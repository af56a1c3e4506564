"""discover -> decode -> cascade -> write -> commit, joined so that memory does not grow with the files.

A block of ring slots goes round: the feeder fills it with files, decode workers with pixels, a scoring
thread runs the cascade on it where it lies, a writer thread writes its masks and hands it back. As a block is
in one place at a time, the ring's size bounds every queue but the last, which has a bound of its own. The
thread that called commits rows to the ledger, and is the only one that does.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from engine.cascade import Cascade, Scores
from engine.ledger import Ledger, SliceRow
from engine.ring import DecodedBlock, Ring
from engine.rows import RowWriter
from engine.sources.discovery import SourceFile, Unlisted

WRITERS = 2
"""Threads that write masks; encoding and writing leave the interpreter lock."""
COMMIT_ROWS = 512
COMMIT_SECONDS = 0.5
"""Rows wait for one transaction until there are this many, or this long: a transaction is a disk flush."""
_TICK = 0.1
"""Seconds after which a waiting thread looks whether the run is over."""


@dataclass(slots=True)
class Totals:
    """What this call did: slices by outcome, and monotonic times in seconds."""

    ok: int = 0
    quarantined: int = 0
    has_mask: int = 0
    started: float = 0.0
    ended: float = 0.0

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


@dataclass(slots=True)
class Pipeline:
    """One run's moving parts. `run` returns when everything is committed, or when `stop` asked it to.

    Args:
        entries: files still to score, in order; may raise, which ends the run after what is under way.
        ring, cascade, writer, ledger: open, and closed by the caller.
        scorers: threads that call the cascade.
        stop: set by the caller to end early: what is under way is finished and committed.
        on_tick: called by the thread that called `run`, each COMMIT_SECONDS and after each transaction.
    """

    entries: Iterator[SourceFile | Unlisted]
    ring: Ring
    cascade: Cascade
    writer: RowWriter
    ledger: Ledger
    block_size: int
    scorers: int
    stop: threading.Event
    on_tick: Callable[[Totals], None]
    totals: Totals = field(default_factory=Totals)
    exhausted: bool = False
    _scored: queue.Queue[tuple[DecodedBlock, Scores]] = field(default_factory=queue.Queue)
    _rows: queue.Queue[list[SliceRow]] = field(default_factory=lambda: queue.Queue(64))
    _over: threading.Event = field(default_factory=threading.Event)
    _fed: threading.Event = field(default_factory=threading.Event)
    _batches: int = 0
    _errors: list[BaseException] = field(default_factory=list)

    def run(self) -> Totals:
        """Work until done. Raises the first error that any part met, after committing what was finished."""
        self.totals.started = self.totals.ended = time.monotonic()
        threads = [threading.Thread(target=self._guard, args=(self._feed,), name="feeder")]
        threads += [
            threading.Thread(target=self._guard, args=(self._score,), name=f"scorer{i}")
            for i in range(self.scorers)
        ]
        threads += [
            threading.Thread(target=self._guard, args=(self._write,), name=f"writer{i}")
            for i in range(WRITERS)
        ]
        for thread in threads:
            thread.start()
        try:
            self._commit()
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
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
        """Fill blocks with files. An error here lets what is under way finish first."""
        waiting: list[SourceFile] = []
        for entry in self.entries:
            if isinstance(entry, Unlisted):
                self._put_rows([self.writer.unlisted_row(entry)])
                self._batches += 1
            else:
                waiting.append(entry)
            if len(waiting) == self.block_size:
                self._submit(waiting)
                waiting = []
            if self.stop.is_set() or self._over.is_set():
                return
        if waiting:
            self._submit(waiting)
        self.exhausted = not self._over.is_set()

    def _submit(self, files: list[SourceFile]) -> None:
        while not self._over.is_set():
            block = self.ring.acquire(_TICK)
            if block is not None:
                self._batches += 1
                self.ring.submit(block, files)
                return

    def _score(self) -> None:
        while not self._over.is_set():
            block = self.ring.completed(_TICK)
            if block is None:
                continue
            valid = np.array([piece.failure is None for piece in block.slices])
            self._scored.put((block, self.cascade.score(block.images[: len(valid)], valid)))

    def _write(self) -> None:
        while not self._over.is_set():
            try:
                block, scores = self._scored.get(timeout=_TICK)
            except queue.Empty:
                continue
            rows = self.writer.write_block(block, scores)
            self.ring.release(block.block)
            self._put_rows(rows)

    def _put_rows(self, rows: list[SliceRow]) -> None:
        while not self._over.is_set():
            try:
                self._rows.put(rows, timeout=_TICK)
                return
            except queue.Full:
                continue

    def _commit(self) -> None:
        """Gather rows and commit them, until every batch that was fed has come out."""
        done = 0
        held: list[SliceRow] = []
        since = time.monotonic()
        while not (self._fed.is_set() and done == self._batches) and not self._over.is_set():
            try:
                held += self._rows.get(timeout=_TICK)
                done += 1
            except queue.Empty:
                pass
            if len(held) >= COMMIT_ROWS or time.monotonic() - since >= COMMIT_SECONDS:
                self._commit_rows(held)
                held, since = [], time.monotonic()
        while not self._rows.empty():
            held += self._rows.get_nowait()
        self._commit_rows(held)

    def _commit_rows(self, rows: list[SliceRow]) -> None:
        if rows:
            self.ledger.commit(rows)
            self.totals.add(rows)
        self.on_tick(self.totals)
