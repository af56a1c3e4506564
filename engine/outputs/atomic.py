"""How every file of a run is written: whole, or not at all."""

from __future__ import annotations

import itertools
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

_PROCESS: Final = secrets.token_hex(4)  # tells apart processes of one number on two hosts that share a folder
_numbers = itertools.count()  # drawing the next one is atomic, so threads never share a name
_TEMPORARY: Final = re.compile(r"\.tumorscan-[0-9a-f]{8}-\d+-\d+\.tmp")


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Give a new file that takes the place of `path` when the block ends, or vanishes when it raises.

    It lies beside `path` under a name of its own, so the rename is atomic and nobody reads half a file.
    Missing folders are made. `durable` flushes it to the disk before the rename. Raises OSError.
    """
    temporary = path.with_name(f".tumorscan-{_PROCESS}-{os.getpid()}-{next(_numbers)}.tmp")
    file = _create(temporary)
    try:
        with file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def clean_stale(out: Path) -> int:
    """Delete the temporary files that killed runs left below `out`; returns how many.

    Only for the holder of the run's lock, before its first write. Lists every folder below `out`, so it is
    for continuations. Links to folders are not followed. Raises OSError when a file cannot be deleted.
    """
    stale = [
        Path(folder, name)
        for folder, _, names in os.walk(out)
        for name in names
        if _TEMPORARY.fullmatch(name)
    ]
    for path in stale:
        path.unlink()
    return len(stale)


def _create(path: Path) -> BinaryIO:
    """Open a new file. Its folder is made only when it is missing, which spares a look at it every time."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
