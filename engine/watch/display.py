"""What a run shows while it goes on: a bar on a terminal, a plain line every ten seconds in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engine.ledger import Counts
from engine.pipeline import Totals
from engine.run import Options, Outcome, Plan
from engine.sources.shards import Shard
from engine.watch.expected import Expected
from engine.watch.watcher import Watcher

LINE_SECONDS = 10.0


class Display(Watcher):
    """Shows a run on `console`, and the time left where it is known how many slices are expected."""

    def __init__(self, options: Options, console: Console, expected: Expected, *, quiet: bool) -> None:
        self.options = options
        self.console = console
        self.quiet = quiet
        self.before = 0
        self.expected = expected
        self.last_line = time.monotonic()
        self.step = ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        shown = console.is_terminal and not quiet
        self.bar = Progress(*columns, console=console, transient=True, disable=not shown)
        self.task = self.bar.add_task("loading the models", total=None, figures="")

    def begins(self, plan: Plan, counts: Counts) -> None:
        """Say what will be done."""
        self.before = counts.ok + counts.quarantined
        if not self.quiet:
            bits = ", ".join(dict.fromkeys(plan.precision))
            why = f": {plan.why}" if plan.why else ""
            goes_on = f", continuing after {self.before:,} slices" if plan.continued else ""
            if self.options.shard is not None:
                self.console.print(f"shard {_part(self.options.shard)}", soft_wrap=True)
            self.console.print(
                f"{plan.bundle.manifest.name} on {plan.backend} ({bits}){goes_on}{why}", soft_wrap=True
            )

    def prepares(self, text: str, done: float | None) -> None:
        """Say what a GPU waits for: in the bar, or a line for each step."""
        total = None if done is None else 1.0
        self.bar.update(self.task, description=text, total=total, completed=done or 0.0, figures="")
        step = text.partition(": ")[0]  # a builder's own phases follow each other too fast for a log
        if step != self.step and not self.quiet and not self.console.is_terminal:
            self.console.print(step, soft_wrap=True)
        self.step = step

    def says(self, line: str) -> None:
        """Print a line."""
        if not self.quiet:
            self.console.print(line, soft_wrap=True)

    def goes_on(self, totals: Totals) -> None:
        """Move the bar, or print a line when the last one is ten seconds old."""
        if self.quiet:
            return
        now = time.monotonic()
        rate = totals.slices / max(now - totals.started, 1e-9)
        expected = self.expected.slices
        left = None if expected is None else max(0, expected - self.before - totals.slices)
        if self.console.is_terminal:
            figures = f"{self.before + totals.slices:,} slices  {rate:,.1f}/s"
            self.bar.update(
                self.task,
                description="scoring",
                total=expected,
                completed=self.before + totals.slices,
                figures=figures,
            )
        elif now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            remaining = "" if left is None or rate == 0 else f", {_duration(left / rate)} left"
            self.console.print(
                f"{self.before + totals.slices:,} slices, {rate:,.1f} a second, "
                f"{totals.quarantined:,} quarantined{remaining}",
                soft_wrap=True,
            )

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()


def closing_table(outcome: Outcome) -> str:
    """What came of a run, in a few lines."""
    counts, totals = outcome.counts, outcome.totals
    slices = counts.ok + counts.quarantined
    # Not rich's table: it squeezes a path that is wider than the screen, which nobody can copy then.
    rows = {} if outcome.shard is None else {"shard": _part(outcome.shard)}
    rows |= {
        "slices": f"{slices:,} ({counts.ok:,} scored, {counts.quarantined:,} quarantined)",
        "with a mask": f"{counts.has_mask:,}",
    }
    if outcome.plan.operating.gated:
        rows["ended at the gate"] = f"{outcome.gated_out:,}"
    if outcome.skipped_masks or outcome.skipped_other:
        rows["passed over"] = (
            f"{outcome.skipped_masks:,} files named *_mask.*, {outcome.skipped_other:,} that are no slices"
        )
    if totals.slices:
        rows["this call"] = f"{totals.slices:,} slices in {_duration(totals.seconds)}"
        rows["throughput"] = f"{outcome.slices_per_second:,.1f} slices a second, disk to disk"
    rows["results"] = f"{outcome.place}/results.csv"
    if counts.quarantined:
        rows["quarantine"] = f"{outcome.place}/errors.csv"
    widest = max(map(len, rows))
    return "\n".join(f"{name:<{widest}}  {value}" for name, value in rows.items())


def _part(shard: Shard) -> str:
    return f"{shard.text}: A PART ONLY; tumorscan merge puts all {shard.count:,} together"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
