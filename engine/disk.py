"""Disks that fail: what is tried again, what is flushed, and what a user is told."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from engine.errors import MachineError

T = TypeVar("T")

PATIENCE_S: Final = (0.1, 0.5, 2.0, 4.0)
"""What is waited before each new try of a write: one bad moment of a server does not end an overnight run."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)  # for syncfs(): Python has sync() only, of all disks at once
_PASSING: Final = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO)


def is_passing(error: Exception) -> bool:
    """Whether `error` is one that a network disk may give once and not again."""
    return isinstance(error, OSError) and error.errno in _PASSING


def patiently(work: Callable[[], T], may_pass: Callable[[Exception], bool] = is_passing) -> T:
    """Do `work`, and again after a while where it raises what `may_pass`; then raise that too."""
    for wait in PATIENCE_S:
        try:
            return work()
        except Exception as error:
            if not may_pass(error):
                raise
            time.sleep(wait)
    return work()


def flush(folder: Path) -> None:
    """Have everything that was written to the file system of `folder` on its disk. Raises OSError.

    One call for all the files of a transaction (milliseconds) instead of one a file, which would take longer
    than scoring does.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _LIBC.syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(folder))
    finally:
        os.close(descriptor)


def flush_all(folders: Iterable[Path]) -> None:
    """`flush` those of `folders` that are there. MachineError where it cannot be done."""
    for folder in folders:
        try:
            if folder.exists():
                flush(folder)
        except OSError as error:
            raise cannot_write(folder, error) from error


def cannot_write(path: Path, error: OSError) -> MachineError:
    """The MachineError of an `error` met while writing `path`: a full disk is told with the bytes left."""
    folder = path if os.path.isdir(path) else path.parent  # noqa: PTH112 - says no where Path raises
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(folder)
    return MachineError(f"{path}: cannot be written ({error.strerror}): give --out a folder that can be")


def disk_full(folder: Path) -> MachineError:
    """The MachineError of a full disk, with the bytes that `folder` has left."""
    try:
        free = f"{shutil.disk_usage(folder).free:,} bytes free"
    except OSError:
        free = "free space unknown"
    return MachineError(
        f"{folder}: the disk is full ({free}): make room, then run the same command to continue"
    )
