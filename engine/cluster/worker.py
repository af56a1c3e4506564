"""What Ray Data calls with units: a whole local pipeline, opened once, that goes on from unit to unit."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.cloud.addresses import Address
from engine.cloud.ahead import Ahead
from engine.cloud.store import Stores
from engine.cloud.uploads import Uploads
from engine.cluster.bench import Bench
from engine.cluster.board import BEAT_S
from engine.cluster.node import Terms, check, keep_to, name_of_node
from engine.cluster.units import Slice, packed, unpacked
from engine.disk import flush_all
from engine.errors import TumorscanError
from engine.ledger import SliceRow
from engine.opening import open_run, writer_for
from engine.outputs.leftovers import FOLDERS
from engine.own_process import tune
from engine.pipeline import Pipeline
from engine.sources.discovery import SourceFile
from engine.stop import Stop, StoppedError

if TYPE_CHECKING:
    import pyarrow as pa

AT_ONCE: Final = 3
"""Units that a worker is at: one is decoded while another is scored and a third one's masks are written."""
_PAUSE_S: Final = 0.05
"""After this long without a unit what waits for its block to fill is scored as it is."""


class Worker:
    """A worker of the cluster. Ray makes it on a node, and anew on any node after a death.

    What goes wrong is told with the next unit: raised in here it would not reach the user as one line.
    """

    def __init__(self, terms: Terms, board: Any) -> None:
        import ray

        tune()
        context = ray.get_runtime_context()
        self._name, self._node = context.get_actor_id(), context.get_node_id()
        self._options = terms.options
        if terms.options.store is not None:
            self._bench = Bench.take()
            self._options = replace(terms.options, out=self._bench.folder)
        self._terms = terms
        self._board = board
        self._stores = Stores()
        self._stop = Stop()
        self._trays = Trays()
        self._open = threading.Event()
        self._fault: BaseException | None = None
        threading.Thread(target=self._listen, daemon=True, name="stop").start()
        # One thread opens and works, as a GPU's process dies with the thread that started it.
        threading.Thread(target=self._work, daemon=True, name="pipeline").start()
        self._open.wait()
        ray.get(board.arrive.remote(self._name, self._node, context.current_actor))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the unit of a row: its rows, and the error that ended this worker, "" for none."""
        import pyarrow as pa
        import ray

        (unit,), (slices,) = table["unit"].to_pylist(), table["slices"].to_pylist()
        rows: list[SliceRow] = []
        if self._fault is None and ray.get(self._board.begin.remote(unit, self._name)):
            rows = self._trays.fill(unpacked(slices)).wait()
            self._settle(rows)
        if self._fault is not None and not isinstance(self._fault, TumorscanError):
            raise self._fault
        return pa.table({"unit": [unit], "rows": [packed(rows)], "fault": [str(self._fault or "")]})

    def says(self, line: str) -> None:
        """See `engine.on_gpus.Listener`."""
        self._board.say.remote(f"{name_of_node()}: {line}")

    def prepares(self, text: str, done: float | None) -> None:
        """See `engine.on_gpus.Listener`; the driver shows what is done, not how each worker comes up."""

    def _listen(self) -> None:
        import ray

        asked = self._board.wait_for_stop.remote()
        try:
            while not ray.wait([asked], timeout=BEAT_S)[0]:
                if self._open.is_set():
                    self._board.beat.remote(self._name, self._node, self._trays.rows)
        finally:  # with the board the driver is gone, too
            self._stop.asked.set()

    def _work(self) -> None:
        try:
            self._cores = keep_to(self._terms.cores) if self._terms.cores else None
            plan = check(self._terms)
            with (
                Ahead(self._stores, self._stop.asked) as ahead,
                open_run(self._options, plan, (), self, self._stop) as opened,
            ):
                self._open.set()
                Pipeline(
                    entries=ahead.fetched(self._trays.entries(self._stop.asked)),
                    ring=opened.ring,
                    scorer=opened.scorer,
                    writer=writer_for(self._options, opened.drawer),
                    ledger=self._trays,
                    block_size=opened.batch,
                    stop=self._stop.asked,
                    on_tick=lambda _: None,
                    on_pages=self._trays.expect_pages,
                    on_decoded=ahead.decoded,
                    hold=0.0,
                ).run()
        except StoppedError:
            pass
        except BaseException as error:
            self._fault = error
        finally:
            self._open.set()
            self._trays.close()

    def _settle(self, rows: Sequence[SliceRow]) -> None:
        """Have the masks on the shared disk or in the store before their rows are told of."""
        if self._options.store is not None:
            address = Address.parse(self._options.store)
            uploads = Uploads(self._stores.of(address), address, self._options.out)
            uploads.put([*uploads.of(rows)])
            uploads.discard(rows)
        elif any(row.mask_path or row.has_mask for row in rows):
            flush_all(Path(self._options.out, name) for name in FOLDERS)


@dataclass(slots=True)
class Tray:
    """A unit on its way through the pipeline: how many of its slices are still to come, and the others."""

    left: int
    rows: list[SliceRow] = field(default_factory=list)
    full: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> list[SliceRow]:
        """The rows of all its slices, or of those that were done when the pipeline ended."""
        self.full.wait()
        return self.rows


class Trays:
    """Feeds a pipeline with units, and takes the place of its ledger: each row goes back to its unit."""

    def __init__(self) -> None:
        self._units: queue.SimpleQueue[list[Slice]] = queue.SimpleQueue()
        self.rows = 0
        self._trays: dict[bytes, Tray] = {}
        self._closed = False
        self._turn = threading.Lock()

    def fill(self, unit: list[Slice]) -> Tray:
        """Have a unit scored. All slices of a file are in one, so that its `order` tells whose they are.

        One that is on its way already, and was given out again, has no rows the second time.
        """
        tray = Tray(len(unit))
        with self._turn:
            if self._closed or not unit or unit[0].order in self._trays:
                tray.full.set()
                return tray
            self._trays.update((entry.order, tray) for entry in unit)
        self._units.put(unit)
        return tray

    def entries(self, over: threading.Event) -> Iterator[Slice | None]:
        """What the pipeline is fed with: slices, and None where no more of them wait for now."""
        while not over.is_set():
            try:
                unit = self._units.get(timeout=_PAUSE_S)
            except queue.Empty:
                yield None
            else:
                yield from unit

    def expect_pages(self, file: SourceFile, count: int) -> None:
        """A picture turned out to have `count` pages, each of which will have a row instead of its own."""
        with self._turn:
            self._trays[file.order].left += count - 1

    def commit(self, rows: Sequence[SliceRow]) -> None:
        """See `engine.pipeline.Keeper`."""
        with self._turn:
            self.rows += len(rows)
            for row in rows:
                tray = self._trays[row.order]
                tray.rows.append(row)
                tray.left -= 1
                if not tray.left:
                    tray.full.set()
                    self._trays = {order: each for order, each in self._trays.items() if each is not tray}

    def close(self) -> None:
        """The pipeline has ended; nobody waits for it any more."""
        with self._turn:
            self._closed = True
            for tray in self._trays.values():
                tray.full.set()
