"""A folder of the user's own, changed by one process at a time; every change shows whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from engine.errors import MachineError
from engine.lock import FileLock, LockHeldError
from engine.plans.trust import ANOTHER_FOLDER, own_folder
from engine.text import shown

_CHANGES: Final = "cache.lock"
_TEMPORARY: Final = re.compile(r"\.tumorscan-[0-9a-f]{16}\.tmp")
_POLL: Final = 0.2  # seconds between two looks at a lock that another holds
_PATIENCE: Final = 120.0  # seconds; a change takes one or two, on the slowest of disks


class Store:
    """The folder. `put_file`, `put_folder`, `move` and `discard` are for within `changing`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def hold(self, name: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock file `name`, making the folder where it is missing.

        `waiting` is told the holder ("process 12 on gpu-3") five times a second while another has it; what it
        raises ends the wait. Raises UsageError when the folder is not to be trusted, MachineError when it
        cannot be written.
        """
        self._make()
        lock = self._take(self.folder / name, waiting)
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def changing(self, needed: int = 0) -> Iterator[None]:
        """Be the only one who changes the folder; what killed changes left in it is removed first.

        `needed` is the bytes that will be written. Raises as `hold`; an OSError within becomes a MachineError
        that names its file.
        """
        deadline = time.monotonic() + _PATIENCE

        def wait(holder: str) -> None:
            if time.monotonic() > deadline:
                raise MachineError(
                    f"{shown(self.folder)}: {holder} has been changing it for {_PATIENCE:.0f} seconds: "
                    f"end that process, or {ANOTHER_FOLDER}"
                )

        with self.hold(_CHANGES, wait):
            try:
                self._clean()
                yield
            except OSError as error:
                raise self._cannot_write(error, needed) from error
            finally:
                with suppress(OSError):
                    self._clean()

    def put_file(self, path: Path, content: bytes) -> None:
        """Write `path`, in place of what stood there. Its folder is made where it is missing."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fresh = self._temporary()
        _write(fresh, content)
        fresh.replace(path)
        _flush_folder(path.parent)

    def put_folder(self, path: Path, files: Mapping[str, bytes]) -> None:
        """Write the folder `path` with these `files`, in place of what stood there."""
        fresh = self._temporary()
        fresh.mkdir(mode=0o700)
        for name, content in files.items():
            _write(fresh / name, content)
        _flush_folder(fresh)
        self.move(fresh, path)

    def move(self, path: Path, to: Path) -> None:
        """Give `path` the place `to`, instead of what stood there. The folder of `to` is made if missing."""
        to.parent.mkdir(mode=0o700, exist_ok=True)
        if os.path.lexists(to):
            self.discard(to)
        path.rename(to)
        _flush_folder(to.parent)
        _flush_folder(path.parent)

    def discard(self, path: Path) -> None:
        """Remove a file or folder, which vanishes at once; a link is not followed."""
        doomed = self._temporary()
        path.rename(doomed)
        _remove(doomed)

    def _make(self) -> None:
        try:
            for folder in (*reversed(self.folder.parents), self.folder):
                if not folder.exists():
                    folder.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError:
            pass  # no folder, or a link to nothing: said below
        except OSError as error:
            raise self._cannot_write(error) from error
        with own_folder(self.folder):
            pass

    def _take(self, path: Path, waiting: Callable[[str], None]) -> FileLock:
        while True:
            try:
                return FileLock.acquire(path)
            except LockHeldError as held:
                holder = held.holder
            except OSError as error:
                raise self._cannot_write(error) from error
            waiting(holder)
            time.sleep(_POLL)

    def _temporary(self) -> Path:
        return self.folder / f".tumorscan-{secrets.token_hex(8)}.tmp"

    def _clean(self) -> None:
        """Remove temporary files: to the lock's holder all are orphans. One that stays does no harm."""
        for path in self.folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    _remove(path)

    def _cannot_write(self, error: OSError, needed: int = 0) -> MachineError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = f"{shutil.disk_usage(self.folder).free:,} bytes free"
            wanted = f", {needed:,} needed" if needed else ""
            return MachineError(
                f"{shown(self.folder)}: the disk or quota is full ({free}{wanted}): make room, "
                f"or {ANOTHER_FOLDER}"
            )
        where = shown(error.filename or self.folder)
        return MachineError(f"{where} cannot be written ({error.strerror or error}): {ANOTHER_FOLDER}")


def _write(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
