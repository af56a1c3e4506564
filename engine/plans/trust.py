"""Which files may be loaded as code: a user's own, in folders of theirs that nobody else can change.

A folder is opened once and all below it is reached through its descriptor, without following links, so
what was checked is what is read.
"""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from engine.errors import MachineError, UsageError
from engine.text import shown

ANOTHER_FOLDER: Final = "choose another folder with --plan-cache DIR or TUMORSCAN_PLAN_CACHE"

_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def own_folder(root: Path, *below: str) -> Iterator[int]:
    """The descriptor of `root`, or of the folder `below` it.

    `root` must be this user's with mode 0700, those below it this user's and writable for nobody else; none
    may be a link. Folders above are not looked at: who can change these can put another folder in the place
    of `root`, but none that is this user's. Raises FileNotFoundError when one is
    missing, UsageError naming the one that breaks a rule, MachineError when one cannot be opened.
    """
    descriptor = _open_checked(root, None, folder=True)
    try:
        path = root
        for name in below:
            path = path / name
            inner = _open_checked(path, descriptor, folder=True)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_own_file(folder: int, path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """Open `path`, which lies in the open `folder`, for reading; `size` is the bytes that it must have.

    Raises FileNotFoundError when it is missing, UsageError when it breaks a rule or has another size,
    MachineError when it cannot be opened.
    """
    with open(_open_checked(path, folder, folder=False), "rb") as file:
        found = os.fstat(file.fileno()).st_size
        if size is not None and found != size:
            raise UsageError(
                f"{shown(path)} has {found:,} bytes, its record says {size:,}: {delete(path.parent)}"
            )
        yield file


def read_own_file(folder: int, path: Path, size: int | None = None) -> bytes:
    """The bytes of `path`, as `open_own_file` opens it."""
    with open_own_file(folder, path, size) as file:
        try:
            return file.read()
        except OSError as error:
            raise _unreadable(path, error) from error


def delete(folder: Path) -> str:
    """What to do with a `folder` that is no good."""
    return f"{_command('rm -r', folder)} and build again"


def _open_checked(path: Path, parent: int | None, *, folder: bool) -> int:
    """The descriptor of `path`, which is the cache folder or lies in the open folder `parent`."""
    # O_NONBLOCK: opening a pipe would wait for its writer.
    kind = os.O_DIRECTORY if folder else os.O_NONBLOCK
    name = path if parent is None else path.name
    try:
        descriptor = os.open(name, os.O_RDONLY | kind | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        raise
    except OSError as error:
        with suppress(OSError):  # the kernel's word for a link or for another user's folder says too little
            _check(path, os.stat(name, dir_fd=parent, follow_symlinks=False), parent is None, folder)
        raise _unreadable(path, error) from error
    try:
        _check(path, os.fstat(descriptor), parent is None, folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check(path: Path, status: os.stat_result, is_root: bool, folder: bool) -> None:
    remedy = ANOTHER_FOLDER if is_root else delete(path if folder else path.parent)
    mode = stat.S_IMODE(status.st_mode)
    right_kind = stat.S_ISDIR if folder else stat.S_ISREG
    if stat.S_ISLNK(status.st_mode):
        raise UsageError(f"{shown(path)} is a symbolic link, plans are not read through links: {remedy}")
    if not right_kind(status.st_mode):
        raise UsageError(f"{shown(path)} is not a {'folder' if folder else 'file'}: {remedy}")
    if status.st_uid != os.geteuid():
        owner, user = _user(status.st_uid), _user(os.geteuid())
        raise UsageError(f"{shown(path)} belongs to {owner}, not to {user}: {remedy}")
    if mode & _OTHERS_WRITE:
        if is_root:
            remedy = f"{ANOTHER_FOLDER}, or {_chmod('700', path)} if you trust what it holds"
        raise UsageError(f"{shown(path)} can be written by others (mode {mode:04o}): {remedy}")
    if is_root and mode & _OTHERS:
        remedy = f"{_chmod('700', path)}, or {ANOTHER_FOLDER}"
        raise UsageError(f"{shown(path)} is open to others (mode {mode:04o}): {remedy}")


def _unreadable(path: Path, error: OSError) -> MachineError:
    return MachineError(f"{shown(path)} cannot be read ({error.strerror}): {ANOTHER_FOLDER}")


def _user(number: int) -> str:
    try:
        return f"user {number} ({pwd.getpwuid(number).pw_name})"
    except KeyError:
        return f"user {number}"


def _chmod(mode: str, path: Path) -> str:
    return _command(f"chmod {mode}", path)


def _command(command: str, path: Path) -> str:
    return f"{command} {shlex.quote(shown(path))}"
