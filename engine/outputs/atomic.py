"""How every file of a run is written: whole, or not at all."""

from __future__ import annotations

import functools
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
_PRIVATE: Final = 0o600
_UMASK_LINE: Final = re.compile(r"^Umask:\s*([0-7]+)$", re.MULTILINE)
_TEMPORARY: Final = re.compile(r"\.tumorscan-[0-9a-f]{8}-\d+-\d+\.tmp")


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Give a new file that takes the place of `path` when the block ends, or vanishes when it raises.

    It lies beside `path` under a name of its own, so the rename is atomic and nobody reads half a file; only
    its owner may open it until then. Missing folders are made. `durable` flushes it to the disk before the
    rename. Raises OSError.
    """
    temporary = path.with_name(_temporary_name())
    descriptor = _open_new(os.fsencode(temporary), os.fsencode(path.parent))
    try:
        with open(descriptor, "wb") as file:
            yield file
            with suppress(PermissionError):  # a file system without permissions
                os.fchmod(file.fileno(), _usual_mode())
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_whole(path: bytes, data: bytes | memoryview) -> None:
    """Do what `replacing` does for a small file whose bytes are at hand, in less time. Raises OSError."""
    folder = os.path.dirname(path)  # noqa: PTH120
    temporary = os.path.join(folder, _temporary_name().encode())  # noqa: PTH118
    descriptor = _open_new(temporary, folder)
    try:
        try:
            while len(data) > (written := os.write(descriptor, data)):
                data = data[written:]
            with suppress(PermissionError):  # a file system without permissions
                os.fchmod(descriptor, _usual_mode())
        finally:
            os.close(descriptor)
        os.rename(temporary, path)  # noqa: PTH104 - the names are bytes
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise


def clean_stale(out: Path) -> int:
    """Delete the temporary files that killed runs left below `out`; returns how many.

    Only for the holder of the run's lock, while nobody writes. Lists every folder below `out`, so it is for
    continuations and for clusters. Links to folders are not followed, but for `out`/masks and its like, which
    may lie on another disk. Raises OSError when a file cannot be deleted.
    """
    linked = [
        top for name in ("masks", "overlays", "probabilities", "volumes") if (top := out / name).is_symlink()
    ]
    stale = [
        Path(folder, name)
        for top in (out, *linked)
        for folder, _, names in os.walk(top)
        for name in names
        if _TEMPORARY.fullmatch(name)
    ]
    for path in stale:
        path.unlink()
    return len(stale)


def clean_after(process: int, folder: bytes) -> None:
    """Delete the temporary files that a dead process of this machine left in `folder`, if that can be."""
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - the names are bytes
            if _TEMPORARY.fullmatch(os.fsdecode(name)) and name.split(b"-")[2] == b"%d" % process:
                os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118


def _temporary_name() -> str:
    return f".tumorscan-{_PROCESS}-{os.getpid()}-{next(_numbers)}.tmp"


def _open_new(path: bytes, folder: bytes) -> int:
    """Open a new file. Its `folder` is made only when it is missing, which spares a look at it every time."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, _PRIVATE)
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        return os.open(path, flags, _PRIVATE)


@functools.cache
def _usual_mode() -> int:
    """What any other new file of this process has: the user's umask decides. (os.umask() cannot only ask.)"""
    try:
        found = _UMASK_LINE.search(Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return 0o666 & ~int(found[1], 8) if found else _PRIVATE
