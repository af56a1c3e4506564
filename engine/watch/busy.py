"""How busy the stages of a run are: which of them the others wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Busy:
    """Seconds that the threads or processes of each stage were at work, together, and how many those are.

    A stage that is at work all the time (a share of 1) is the one that the others wait for.
    """

    hands: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Count what the block takes; many threads at once."""
        begun = time.monotonic()
        try:
            yield
        finally:
            with self._turn:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - begun

    def shares(self, seconds: float) -> dict[str, float]:
        """The share, 0 to 1, of the last `seconds` that each stage was at work; what is under way lags."""
        if seconds <= 0:
            return dict.fromkeys(self.hands, 0.0)
        return {
            stage: min(1.0, self.seconds.get(stage, 0.0) / (hands * seconds))
            for stage, hands in self.hands.items()
        }
