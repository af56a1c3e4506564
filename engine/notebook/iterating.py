"""A run as an iterator: `engine.scoring.score` in a thread of its own, its rows handed over as results.

The thread waits while nobody takes them, so what is held is bounded; it ends in order when the iterator is
closed or dropped, and when its program ends.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from engine.cloud.addresses import as_typed
from engine.errors import UsageError
from engine.ledger import Counts, SliceRow
from engine.ledger_readers import stored_rows
from engine.notebook.result import Result
from engine.run import Options, Outcome, Plan
from engine.scoring import score
from engine.stop import Stop, StoppedError
from engine.watch.watcher import Watcher

if TYPE_CHECKING:
    import pandas as pd

_LOG: Final = logging.getLogger("tumorscan")
_AHEAD: Final = 4
"""Transactions whose results may wait to be taken."""
_AT_ONCE: Final = 256
"""Results handed over together, of those that earlier calls left."""
_INTEGERS: Final = ("has_mask", "mask_pixels", "bbox_x", "bbox_y", "bbox_w", "bbox_h")
_REASON: Final = ("stage", "code", "message")
_TICK: Final = 0.1
"""Seconds after which a run that waits looks whether anybody is left to take its results."""


class Run:
    """Iterates over the results of a run, which begins with the first one asked for.

    One thread at a time may iterate. `close`, the end of a `with` block, and dropping the iterator (leaving a
    `for` loop over `score(...)` does) stop the run in order: what is under way is finished and committed, and
    the same call continues.
    """

    def __init__(self, options: Options, *, private: Path | None = None, images: Path | None = None) -> None:
        """Use `engine.score`.

        `private` is deleted at the end; where it is given, the output lies in it. `images` is the folder of
        engine.notebook.arrays, where the slices come from there.
        """
        self._options = options
        self._is_private = private is not None
        self._handing = _Handing(options, None if private else options.out, images)
        self._taken: deque[Result] = deque()
        self._over = self._closed = False
        self._ends = weakref.finalize(self, _end, self._handing, private)

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended: counts, rate, whether it is finished. None before that, and after an error."""
        return self._handing.outcome

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Result:
        """The next result. Raises what `engine.scoring.score` does, after the results that it came to."""
        while not self._taken:
            if self._over:
                raise StopIteration
            self._take()
        return self._taken.popleft()

    def to_frame(self) -> pd.DataFrame:
        """Score what is left; results.csv as a DataFrame, with why slices failed: `stage`, `code`, `message`.

        Rows are in the order of the input; of arrays `index` stands for `volume` and `image_path`. Results
        that are not taken yet are not yielded any more. Raises UsageError where `close` came before the end,
        or has deleted the table, ImportError without pandas.
        """
        import pandas as pd

        deque(self, maxlen=0)
        ended = self.outcome is not None and (self.outcome.finished or not self._closed)
        if not ended or (self._closed and self._is_private):
            raise UsageError(
                "the run was closed before: call score() again, it continues where it has an out="
            )
        out, key = self._options.out, ["image_path", "slice"]
        rows = pd.read_csv(
            as_typed(out / "results.csv"),
            keep_default_na=False,
            na_values={name: [""] for name in (*_INTEGERS, "tumor_probability", "mask_fraction")},
            dtype=dict.fromkeys(_INTEGERS, "Int64"),
        )
        errors = pd.read_csv(as_typed(out / "errors.csv"), keep_default_na=False)
        frame = rows.merge(errors, on=key, how="left").fillna(dict.fromkeys(_REASON, ""))
        if self._handing.images is not None:
            frame.insert(0, "index", [int(Path(path).stem) for path in frame["image_path"]])
            frame = frame.drop(columns=["volume", "image_path", "slice", "mask_path"])
        return frame

    def close(self) -> None:
        """Stop the run in order, wait for that, and delete what it kept for itself. Twice is harmless."""
        self._over = self._closed = True
        self._taken.clear()
        self._ends()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self) -> None:
        """Wait for results."""
        try:
            found = self._handing.take()
        except BaseException:  # Ctrl-C: a notebook keeps the traceback, and with it this iterator
            self.close()
            raise
        if found is not None:
            self._taken.extend(found)
            return
        self._over = True
        if self._handing.error is not None:
            self._ends()  # whoever keeps the traceback keeps this iterator
            raise self._handing.error


class _Handing(Watcher):
    """Hands over what a run comes to, in the run's thread, to whoever takes it.

    Slices that earlier calls scored come first. Those in quarantine wait for the end: some are tried again.
    With a rule for components all wait, since it may change a mask until its volume is whole.
    """

    def __init__(self, options: Options, out: Path | None, images: Path | None) -> None:
        self.images = images
        self.error: BaseException | None = None
        self.outcome: Outcome | None = None
        self._options = options
        self._out = out
        self._stop = Stop()
        self._queue: queue.Queue[list[Result] | None] = queue.Queue(_AHEAD)
        self._nobody = threading.Event()
        self._taker: threading.Thread | None = None
        self._thread: threading.Thread | None = None
        self._waits = not options.components.keeps_all
        self._begun = self._continued = False
        self._failed: set[tuple[bytes, int]] = set()

    def take(self) -> list[Result] | None:
        """The next results, of the run that begins now if it has not; None at its end."""
        self._taker = threading.current_thread()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tumorscan-run")
            self._thread.start()
        return self._queue.get()

    def end(self) -> None:
        """Ask the run to stop, and wait until it did."""
        self._nobody.set()
        self._stop.asked.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def begins(self, plan: Plan, _counts: Counts) -> None:
        """See `Watcher.begins`."""
        self._begun, self._continued = True, plan.continued
        if self._continued and not self._waits:
            earlier = stored_rows(self._options.ledger, skips_damaged=True)
            self._give_all(row for row in earlier if row.status == "ok")

    def says(self, line: str) -> None:
        """See `Watcher.says`."""
        _LOG.warning(line)

    def commits(self, rows: Sequence[SliceRow]) -> None:
        """See `Watcher.commits`."""
        if self.images is not None:
            for row in rows:
                with suppress(OSError):
                    Path(row.image_path).unlink()
        if self._continued:
            self._failed.update((row.order, row.slice) for row in rows if row.status == "quarantined")
        if not self._waits:
            self._give(rows)

    def ends(self, rows: Callable[[], Iterator[SliceRow]]) -> None:
        """See `Watcher.ends`."""
        if self._waits or not self._begun:
            self._give_all(rows())
        elif self._continued:
            self._give_all(
                row
                for row in rows()
                if row.status == "quarantined" and (row.order, row.slice) not in self._failed
            )

    def _work(self) -> None:
        try:
            self.outcome = score(self._options, self, self._stop)
        except StoppedError:  # before the first slice
            pass
        except BaseException as error:  # carried to the thread that iterates
            self.error = error
        finally:
            self._put(None)

    def _give_all(self, rows: Iterable[SliceRow]) -> None:
        left = iter(rows)
        while (page := list(islice(left, _AT_ONCE))) and not self._nobody.is_set():
            self._give(page)

    def _give(self, rows: Sequence[SliceRow]) -> None:
        self._put([Result.of_row(row, self._out, self.images) for row in rows])

    def _put(self, results: list[Result] | None) -> None:
        while not self._nobody.is_set():
            try:
                self._queue.put(results, timeout=_TICK)
                return
            except queue.Full:
                self._stop.look_at_clock()
                self._look_for_taker()

    def _look_for_taker(self) -> None:
        """Python waits for threads when a program ends: one that iterates no more leaves this one its end."""
        threads = (self._taker, threading.main_thread())
        if not any(thread is not None and thread.is_alive() for thread in threads):
            self._nobody.set()
            self._stop.asked.set()


def _end(handing: _Handing, private: Path | None) -> None:
    handing.end()
    if private is not None:
        shutil.rmtree(private, ignore_errors=True)
