"""What a user is told of a folder that cannot be written, or is full."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from engine.errors import MachineError


def cannot_write(path: Path, error: OSError) -> MachineError:
    """The MachineError of an `error` met while writing `path`: a full disk is told with the bytes left."""
    folder = path if path.is_dir() else path.parent
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
