"""What files of a folder are on the disk: sizes and times of many at once."""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH116

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterable
from typing import Final, TypeAlias

from engine.sources.files import time_of

Statuses: TypeAlias = "array[int]"
"""Of each name in turn its file's size (bytes) and its time (nanoseconds)."""
NO_FILE: Final = -1
"""The size of what is none, or cannot be looked at."""


def look_at(folder: bytes, names: Iterable[bytes]) -> Statuses:
    """The statuses of `folder` + name of each of the names."""
    found = array("q")
    for name in names:
        status = status_of(folder + name)
        found.extend((NO_FILE, 0) if status is None else (status.st_size, time_of(status)))
    return found


def status_of(path: bytes) -> os.stat_result | None:
    """The status of a file; None of what is none, or cannot be looked at: another look tells why."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None
