"""How often Python looks for garbage in a process that is a run's own."""

from __future__ import annotations

import gc
from typing import Final

_YOUNG: Final = 50_000
"""New objects after which it looks; Python's own number is 700, and a run holds thousands of rows."""


def collect_seldom() -> None:
    """For a command's process: rows come and go without cycles, and a look at them finds nothing."""
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
