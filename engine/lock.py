"""Locks that are files: one holder at a time, and the kernel frees what a dead process held."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Self

from engine.disk import cannot_write
from engine.errors import UsageError


class LockHeldError(Exception):
    """Another holds the lock; `holder` says who, such as "process 12 on gpu-3"."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class FileLock:
    """A lock file, locked. It names its holder, and is deleted when it is released."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Use `FileLock.acquire`."""
        self._path = path
        self._descriptor = descriptor
        self._held = True

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """Lock `path` at once, making the file. Raises LockHeldError; OSError where it cannot be written."""
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same_file(descriptor, path):  # else its last holder deleted it before we locked it
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                    return cls(path, descriptor)
            except BlockingIOError:
                holder = os.pread(descriptor, 400, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise LockHeldError(holder or "process unknown") from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def release(self) -> None:
        """Delete the lock file and let the next one in. Releasing twice is harmless."""
        if self._held:
            self._held = False
            with suppress(OSError):  # a lock file that stays is taken again by the next one
                self._path.unlink()
            os.close(self._descriptor)


class RunLock(FileLock):
    """`run.lock` beside the ledger: one run an output folder."""

    @classmethod
    def take(cls, ledger: Path) -> Self:
        """Lock the folder of `ledger`, making it where it is missing.

        Raises UsageError when another run holds it or a file is in its place, MachineError when it cannot be
        written.
        """
        _make_folder(ledger.parent)
        path = ledger.with_suffix(".lock")
        try:
            return cls.acquire(path)
        except LockHeldError as held:
            raise UsageError(
                f"{ledger.parent}: another run ({held.holder}) is writing here: "
                "wait for its end, or give another --out"
            ) from None
        except OSError as error:
            raise cannot_write(path, error) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{folder}: is not a folder: give --out a folder") from None
    except OSError as error:
        raise cannot_write(folder, error) from error


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
