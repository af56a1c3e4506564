"""Files read and pictures made on all cores: OpenCV and reads let go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

_AHEAD: Final = 256
"""How many results may wait in memory."""

Given = TypeVar("Given")
Made = TypeVar("Made")


def in_threads(work: Callable[[Given], Made], items: Sequence[Given]) -> Iterator[Made]:
    """What `work` makes of each item, in order."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(items), _AHEAD):
            yield from pool.map(work, items[start : start + _AHEAD])
