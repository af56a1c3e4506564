"""What a process that is a run's own has otherwise than Python has it; a caller's is left as it is."""

from __future__ import annotations

import gc
import os
import sys
from typing import Final

_YOUNG: Final = 50_000
"""New objects after which Python looks for garbage (its own number is 700): a run holds thousands of rows."""
_TURN_S: Final = 0.0005
"""How long a thread may keep the interpreter while another waits for it (Python's own: ten times that)."""
_OPENCV_THREADS: Final = "OPENCV_FOR_THREADS_NUM"


def tune() -> None:
    """Make this process one of a run: its rows have no cycles, and many threads that do little in a turn.

    On one core threads take turns as Python has it: every turn is a switch there. OpenCV, which looks at its
    variable when it is loaded, keeps to the thread that calls it: masks are small, and others want the cores.
    """
    os.environ.setdefault(_OPENCV_THREADS, "1")
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
    if len(os.sched_getaffinity(0)) > 1:
        sys.setswitchinterval(_TURN_S)
