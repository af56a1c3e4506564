"""Where a worker writes whose output is an object store, until its files are there."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_PREFIX: Final = "tumorscan-worker-"


@dataclass(frozen=True, slots=True)
class Bench:
    """A temporary folder, locked by this process as long as it lives."""

    folder: Path
    descriptor: int

    @classmethod
    def take(cls) -> Self:
        """A new one; those of processes that are no more are deleted. Raises OSError."""
        for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError):  # somebody's, or gone by now
                descriptor = _lock(left)
                shutil.rmtree(left, ignore_errors=True)
                os.close(descriptor)
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
        descriptor = _lock(made)
        return cls(made.rename(made.with_name(made.name[1:])), descriptor)  # nobody finds it unlocked


def _lock(folder: Path) -> int:
    """A descriptor that holds the folder. OSError where another process does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
