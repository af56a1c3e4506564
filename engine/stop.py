"""How a run is asked to end early."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field


class StoppedError(Exception):
    """The run was asked to stop before its first slice; nothing is wrong."""


@dataclass(slots=True)
class Stop:
    """Ends a run early, in order: what is under way is finished and committed.

    `deadline` is monotonic, in seconds; `out_of_time` tells that it was the deadline that asked.
    """

    asked: threading.Event = field(default_factory=threading.Event)
    deadline: float = math.inf
    out_of_time: bool = False

    def look_at_clock(self) -> None:
        """Ask to stop when the deadline has passed."""
        if time.monotonic() >= self.deadline and not self.asked.is_set():
            self.out_of_time = True
            self.asked.set()
