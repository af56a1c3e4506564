"""How many slices a run will come to: the input counted beside it, so that the time left can be told."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from engine.ledger import Counts
from engine.run import Options, Plan
from engine.scoring import count_slices
from engine.watch.watcher import Watcher


class Expected(Watcher):
    """Counts from the run's begin until it is done, or left; `slices` is None until then.

    They are those of the whole input, scored by earlier calls or not.
    """

    def __init__(self, options: Options) -> None:
        self.slices: int | None = None
        self._options = options
        self._over = threading.Event()

    def begins(self, _plan: Plan, _counts: Counts) -> None:
        """See `Watcher.begins`."""
        threading.Thread(target=self._count, daemon=True, name="counter").start()

    def _count(self) -> None:
        try:
            self.slices = count_slices(self._options, self._over)
        except Exception:  # the run itself meets the same and reports it
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
