"""The driver of a run on a cluster: it feeds units, commits what comes back, and sees who is lost."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from engine.cloud.scattered import Scattered
from engine.cluster.board import Heard
from engine.cluster.faults import plain
from engine.cluster.session import nodes
from engine.cluster.units import Slice, packed, units, unpacked
from engine.errors import MachineError
from engine.ledger import Ledger, SliceRow
from engine.pipeline import COMMIT_ROWS, COMMIT_SECONDS, Totals
from engine.stop import Stop
from engine.watch.watcher import Watcher

PATIENCE_S: Final = 600.0
"""Of a cluster of which nothing is heard: as long as one takes to bring up another machine."""
STALL_S: Final = 45.0
"""After so long without news what nobody is at is given out again: Ray may keep it for one that is gone."""
GRACE_S: Final = 12.0
"""How long workers may take to finish what they are at when the run is to stop."""
AHEAD: Final = 12
"""Units that are fed and not back, a worker: Ray Data keeps two of them waiting for each that is begun."""
_TICK_S: Final = 0.1
_LOOK_S: Final = 1.0
_JOIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Back:
    """What came back of a unit. `fault` is the error that ended its worker, "" for none."""

    unit: int
    rows: list[SliceRow]
    fault: str


@dataclass(slots=True)
class Drive:
    """One run's way through a cluster; `run` returns when all is committed, or when `stop` asked it to.

    `dataset` reads from the `board` what is fed here. `size` are the slices a unit. `names` are nodes as the
    user knows them. `scattered` keeps account of files that workers put into an object store.
    """

    dataset: Any
    board: Any
    ledger: Ledger
    watcher: Watcher
    stop: Stop
    size: int
    workers: int
    names: Mapping[str, str]
    scattered: Scattered | None = None
    totals: Totals = field(default_factory=Totals)
    all_fed: bool = False
    lost_nodes: set[str] = field(default_factory=set)
    _under_way: set[int] = field(default_factory=set)
    _room: threading.Condition = field(default_factory=threading.Condition)
    _back: queue.SimpleQueue[Back | BaseException | None] = field(default_factory=queue.SimpleQueue)
    _fed: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)
    _exhausted: bool = False
    _feed_error: BaseException | None = None
    _held: list[SliceRow] = field(default_factory=list)
    _whole: list[int] = field(default_factory=list)
    _committed_at: float = 0.0
    _heard: Heard = field(default_factory=Heard)
    _news_at: float = 0.0
    _handed_at: float = 0.0
    _stopped_at: float | None = None

    def run(self, entries: Iterator[Slice]) -> None:
        """Score `entries`.

        Raises what they raise, after what is under way is committed; MachineError for a worker's fault, and
        where nothing is heard of the cluster for too long.
        """
        now = time.monotonic()
        self.totals.started = self.totals.ended = self._committed_at = self._news_at = now
        feeder = threading.Thread(target=self._feed, args=(entries,), name="feeder", daemon=True)
        reader = threading.Thread(target=self._read, name="reader", daemon=True)
        feeder.start()
        reader.start()
        try:
            self._work()
        finally:
            self._over.set()
            try:
                self._commit()
            finally:
                self._end(reader)
            feeder.join()
        if self._feed_error is not None:
            raise self._feed_error
        self.all_fed = self._exhausted and self._stopped_at is None  # a stop cuts units short

    def _feed(self, entries: Iterator[Slice]) -> None:
        import ray

        try:
            for number, unit in enumerate(units(entries, self.size)):
                with self._room:
                    self._room.wait_for(self._has_room)
                    if self._is_ending():
                        return
                    self._under_way.add(number)
                if self.scattered is not None:
                    self.scattered.intend(number, unit)
                ray.get(self.board.put.remote(number, packed(unit)))
            self._exhausted = True
        except BaseException as error:  # carried to the caller's thread
            self._feed_error = error
        finally:
            self._fed.set()

    def _has_room(self) -> bool:
        return len(self._under_way) < AHEAD * self.workers or self._is_ending()

    def _is_ending(self) -> bool:
        return self._over.is_set() or self.stop.asked.is_set()

    def _read(self) -> None:
        """Wait for what comes back: Ray Data's iterator blocks, and may not be interrupted."""
        try:
            for table in self.dataset.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for row in table.to_pylist():
                    self._back.put(Back(row["unit"], unpacked(row["rows"]), row["fault"]))
        except BaseException as error:  # carried to the caller's thread
            self._back.put(error)
        else:
            self._back.put(None)

    def _work(self) -> None:
        looked_at = 0.0
        while not (self._fed.is_set() and not self._under_way) and not self._stopped():
            with suppress(queue.Empty):
                self._take(self._back.get(timeout=_TICK_S))
            now = time.monotonic()
            if len(self._held) >= COMMIT_ROWS or now - self._committed_at >= COMMIT_SECONDS:
                self._commit()
            # When the first worker is up is when the run's clock begins.
            if now - looked_at >= (_LOOK_S if self._heard.workers else _TICK_S):
                self._look()
                looked_at = time.monotonic()

    def _take(self, back: Back | BaseException | None) -> None:
        if back is None:
            raise MachineError("Ray Data ended the run before its end: run the same command to continue")
        if isinstance(back, BaseException):
            raise plain(back, "a worker of the cluster") from back
        if back.unit not in self._under_way:
            return  # it was given out twice
        if back.rows or self.stop.asked.is_set():
            self._held += back.rows
            self._whole.append(back.unit)
            self.board.done.remote(back.unit)
            with self._room:
                self._under_way.remove(back.unit)
                self._room.notify_all()
            self._news_at = time.monotonic()
        if back.fault:
            raise MachineError(f"{back.fault} (the same command continues)")

    def _commit(self) -> None:
        rows, self._held = self._held, []
        self._committed_at = time.monotonic()
        if rows:
            self.ledger.commit(rows)
            if self.scattered is not None and not self.stop.asked.is_set():  # a stop cuts units short
                self.scattered.fulfil(self._whole)
            self._whole.clear()
            self.totals.add(rows)
            self.watcher.commits(rows)
        self.stop.look_at_clock()
        self.watcher.goes_on(self.totals)

    def _stopped(self) -> bool:
        """Whether the run was asked to stop, and what was under way then is back."""
        import ray

        if not self.stop.asked.is_set():
            return False
        if self._stopped_at is None:
            ray.get(self.board.stop.remote())
            self._stopped_at = time.monotonic()
            with self._room:
                self._room.notify_all()
            self._look()
        awaited = self._under_way & self._heard.begun.keys()
        return not awaited or time.monotonic() - self._stopped_at > GRACE_S

    def _look(self) -> None:
        """Hear what workers have to say, and see which of them are gone."""
        import ray

        heard: Heard = ray.get(self.board.hear.remote())
        for line in heard.lines:
            self.watcher.says(line)
        now = time.monotonic()
        if heard != self._heard:
            self._news_at = now
        if heard.workers and not self._heard.workers:
            self.totals.started = now  # the models are loaded, and slices are read
        self._heard = heard
        self._look_for_nodes()
        if heard.silent or (heard.workers and now - max(self._news_at, self._handed_at) > STALL_S):
            self._hand_on(heard)
            self._handed_at = now
        if now - self._news_at > PATIENCE_S:
            at = f"{len(heard.workers)} of {self.workers} workers are up"
            raise MachineError(
                f"nothing was heard of the Ray cluster for {PATIENCE_S / 60:.0f} minutes ({at}; `ray status` "
                "tells what it waits for): the same command continues when it has room"
            )

    def _look_for_nodes(self) -> None:
        alive = {node.node_id for node in nodes()}
        for node in {*self.names, *self._heard.workers.values()} - alive - self.lost_nodes:
            self.lost_nodes.add(node)
            name = self.names.get(node, f"node {node[:8]}")
            self.watcher.says(f"{name} is lost: what it had not finished is scored by the others")

    def _hand_on(self, heard: Heard) -> None:
        """Give others what silent workers had: all that nobody is at, as what waits for whom is not known.

        What two have by then is scored once, see `Board.begin`.
        """
        import ray

        ray.get([self.board.lose.remote(worker) for worker in heard.silent])
        kept = {unit for unit, worker in heard.begun.items() if worker not in heard.silent}
        ray.get([self.board.again.remote(unit) for unit in sorted(self._under_way - kept)])

    def _end(self, reader: threading.Thread) -> None:
        """Let the workers go, wherever they are: all that they had to say is heard."""
        import ray

        with self._room:
            self._room.notify_all()
        with suppress(ray.exceptions.RayError):  # the run's own error is told, if the board is gone too
            ray.get(self.board.end.remote())
            for handle in ray.get(self.board.handles.remote()):
                ray.kill(handle)
        reader.join(_JOIN_S)
