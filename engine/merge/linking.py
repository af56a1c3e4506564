"""Files of one folder in another: under a second name where the disk allows it, else as copies."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Final

from engine.outputs.atomic import replacing

_NO_LINK: Final = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Another disk, one that has no links, somebody else's file, or a file that has all the names it can have."""


def take_file(source: Path, target: Path) -> bool:
    """Have the file `source` as `target` too, making its folders; False where there is no such file.

    One that is there already is kept if it is the same file, or a copy of it, and replaced if not. Raises
    OSError.
    """
    try:
        _link(source, target)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy(source, target)
    return True


def take_tree(source: Path, target: Path) -> None:
    """Have all files below `source` below `target` too. Nothing where there is no such folder. OSError."""
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder, name)
            take_file(path, target / path.relative_to(source))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    except FileExistsError:
        if not _is_copy(source, target):
            target.unlink()
            os.link(source, target)


def _copy(source: Path, target: Path) -> None:
    status = source.stat()
    with source.open("rb") as original, replacing(target) as file:
        shutil.copyfileobj(original, file)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is_copy(source: Path, target: Path) -> bool:
    """Whether `target` is the file itself, or was made of it by `_copy`."""
    one, other = source.stat(), target.stat()
    return os.path.samestat(one, other) or (one.st_size, one.st_mtime_ns) == (
        other.st_size,
        other.st_mtime_ns,
    )
