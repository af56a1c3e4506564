"""Who hears how a run goes on: a display, a log, figures for others to read, a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.ledger import Counts, SliceRow
    from engine.pipeline import Totals
    from engine.run import Plan


class Watcher:
    """Hears how a run goes on, in the thread that called `score`; this one keeps quiet."""

    def begins(self, plan: Plan, counts: Counts) -> None:
        """Everything is checked and the models are about to load; `counts` are of earlier calls."""

    def prepares(self, text: str, done: float | None) -> None:
        """Plans are built, or models loaded: what is being done, and how much of it, 0 to 1, if known."""

    def says(self, line: str) -> None:
        """A line for the user; from any thread."""

    def commits(self, rows: Sequence[SliceRow]) -> None:
        """Rows that are in the ledger from now on, in the order in which their slices were done."""

    def goes_on(self, totals: Totals) -> None:
        """Called a few times a second, and after each transaction."""

    def ends(self, rows: Callable[[], Iterator[SliceRow]]) -> None:
        """The tables are written; `rows` gives all of the run's as those have them, in the input's order.

        Its paths are the real ones, with pseudonyms too. Not called where a run is interrupted.
        """


class Watchers(Watcher):
    """Several that hear the same, in turn."""

    def __init__(self, *watchers: Watcher) -> None:
        self.watchers = watchers

    def begins(self, plan: Plan, counts: Counts) -> None:
        """See `Watcher.begins`."""
        for each in self.watchers:
            each.begins(plan, counts)

    def prepares(self, text: str, done: float | None) -> None:
        """See `Watcher.prepares`."""
        for each in self.watchers:
            each.prepares(text, done)

    def says(self, line: str) -> None:
        """See `Watcher.says`."""
        for each in self.watchers:
            each.says(line)

    def commits(self, rows: Sequence[SliceRow]) -> None:
        """See `Watcher.commits`."""
        for each in self.watchers:
            each.commits(rows)

    def goes_on(self, totals: Totals) -> None:
        """See `Watcher.goes_on`."""
        for each in self.watchers:
            each.goes_on(totals)

    def ends(self, rows: Callable[[], Iterator[SliceRow]]) -> None:
        """See `Watcher.ends`."""
        for each in self.watchers:
            each.ends(rows)
