"""A run as JSON lines (`--log-format json`), for those who collect logs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TextIO

import engine
from engine.cloud.addresses import as_typed
from engine.ledger import Counts, SliceRow
from engine.outputs.pseudonyms import Pseudonyms
from engine.pipeline import Totals
from engine.run import Options, Outcome, Plan
from engine.watch.events import Event, Level, Value, json_line
from engine.watch.expected import Expected
from engine.watch.watcher import Watcher

PROGRESS_SECONDS: Final = 10.0


class JsonLog(Watcher):
    """Writes what a run comes to, to `stream`. A quiet one is silent: errors are the command's own to tell.

    `why` tells what the run was asked to stop by, None while it was not. With `--anonymise` slices have their
    pseudonyms.
    """

    def __init__(
        self,
        options: Options,
        stream: TextIO,
        expected: Expected,
        why: Callable[[], str | None],
        *,
        quiet: bool,
    ) -> None:
        self._options = options
        self._stream = stream
        self._expected = expected
        self._why = why
        self._quiet = quiet
        self._names = None if options.anonymise is None else Pseudonyms.open(options.anonymise)
        self._turn = threading.Lock()
        self._before = 0
        self._step = ""
        self._told = time.monotonic()
        self._stopping = False

    def begins(self, plan: Plan, counts: Counts) -> None:
        """See `Watcher.begins`."""
        self._before = counts.ok + counts.quarantined
        self._write(
            "info",
            "begin",
            version=engine.__version__,
            out=as_typed(self._options.out),
            shard=None if self._options.shard is None else self._options.shard.text,
            bundle=plan.bundle.manifest.name,
            bundle_sha256=plan.bundle.sha256,
            backend=plan.backend,
            precision_classifier=plan.precision[0],
            precision_segmenter=plan.precision[1],
            why=plan.why,
            continued=plan.continued,
            slices_before=self._before,
        )

    def prepares(self, text: str, done: float | None) -> None:
        """See `Watcher.prepares`."""
        step = text.partition(": ")[0]  # a builder's own phases follow each other too fast for a log
        if step != self._step:
            self._write("info", "prepare", step=step, done=done)
        self._step = step

    def says(self, line: str) -> None:
        """See `Watcher.says`."""
        self._write("warning", "notice", message=line)

    def commits(self, rows: Sequence[SliceRow]) -> None:
        """See `Watcher.commits`."""
        for row in rows:
            if row.status == "quarantined":
                named = row if self._names is None else self._names.of_row(row)
                self._write(
                    "warning",
                    "quarantine",
                    image_path=named.image_path,
                    slice=named.slice,
                    stage=named.stage,
                    code=named.code,
                    message=named.message,
                )

    def goes_on(self, totals: Totals) -> None:
        """See `Watcher.goes_on`."""
        self._tell_stop()
        now = time.monotonic()
        if now - self._told < PROGRESS_SECONDS:
            return
        self._told = now
        rate = totals.slices / max(now - totals.started, 1e-9)
        done, expected = self._before + totals.slices, self._expected.slices
        left = None if expected is None or rate == 0 else max(0, expected - done) / rate
        self._write(
            "info",
            "progress",
            slices=done,
            slices_expected=expected,
            call_slices=totals.slices,
            call_quarantined=totals.quarantined,
            call_has_mask=totals.has_mask,
            slices_per_second=round(rate, 3),
            seconds_left=None if left is None else round(left, 1),
        )

    def ended(self, outcome: Outcome, status: int) -> None:
        """Tell how it ended, and with which exit status."""
        self._tell_stop()
        counts, totals = outcome.counts, outcome.totals
        self._write(
            "info",
            "end",
            finished=outcome.finished,
            nothing_new=outcome.nothing_new,
            exit_status=status,
            slices=counts.ok + counts.quarantined,
            ok=counts.ok,
            quarantined=counts.quarantined,
            has_mask=counts.has_mask,
            gated_out=outcome.gated_out,
            skipped_masks=outcome.skipped_masks,
            skipped_other=outcome.skipped_other,
            call_slices=totals.slices,
            call_seconds=round(totals.seconds, 3),
            slices_per_second=round(outcome.slices_per_second, 3),
            results=f"{outcome.place}/results.csv",
        )

    def _tell_stop(self) -> None:
        reason = self._why()
        if reason is not None and not self._stopping:
            self._stopping = True
            self._write("warning", "stop", reason=reason)

    def _write(self, level: Level, event: Event, **fields: Value) -> None:
        if self._quiet:
            return
        with self._turn:
            self._stream.write(json_line(level, event, **fields))
            self._stream.flush()
