"""Files as bytes, and what is said when they cannot be had."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engine.errors import Failure, SliceError

MAX_FILE_BYTES = 2**31

NOT_A_FILE = "a pipe, socket or device, not a file"
CHANGED = "it changed while it was read: run the same command again once nobody writes it"

_LAST_TIME = 2**63 - 1
"""In nanoseconds after 1970: a day of April 2262. Disks have later ones, a ledger's integers do not."""
_CODES = {
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.EISDIR: "is_directory",
    errno.ELOOP: "link_loop",
}


@dataclass(frozen=True, slots=True)
class Content:
    """A file as it was read: all of its bytes, and its time then (nanoseconds)."""

    data: bytes
    mtime_ns: int


def io_failure(stage: str, error: OSError) -> Failure:
    """What an OSError amounts to, transient: permission, not_found, is_directory, link_loop or io."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return Failure(stage, _CODES.get(error.errno or 0, "io"), reason, transient=True)


def time_of(status: os.stat_result) -> int:
    """When a file was written last, in nanoseconds, as 64 bits can tell it."""
    return max(-_LAST_TIME, min(status.st_mtime_ns, _LAST_TIME))


def check_file_bytes(size: int) -> None:
    """Raise SliceError `too_large` for a file of `size` bytes that is not read for it."""
    if size > MAX_FILE_BYTES:
        told = f"{size:,} bytes: at most {MAX_FILE_BYTES:,} are read"
        raise SliceError(Failure("read", "too_large", told))


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file that is being read: its descriptor, and its size (bytes) and time when it was opened."""

    descriptor: int
    size: int
    mtime_ns: int

    def content(self) -> Content:
        """All of its bytes. Raises SliceError `changed` where there are more or fewer; OSError."""
        with open(self.descriptor, "rb", closefd=False) as file:
            # One byte more than there are: a file that grows is told, and never read without end.
            data = file.read(self.size + 1)
        if len(data) != self.size:
            raise _changed()
        return Content(data, self.mtime_ns)


def read_file(path: bytes) -> bytes:
    """The bytes of `read_content`."""
    return read_content(path).data


def read_content(path: bytes) -> Content:
    """Return the whole of a regular file. Raises what `open_file` does."""
    with open_file(path) as file:
        return file.content()


@contextmanager
def open_file(path: bytes) -> Iterator[OpenFile]:
    """Open a regular file to be read, within the block, from its start.

    Raises SliceError, stage `read`, for OSErrors within the block too: the codes of `io_failure`,
    `not_a_file` (a pipe, a device), `too_large`, and `changed` (transient) where somebody wrote the file
    meanwhile, so that what was read may be half the old one, or put another in its place.
    """
    try:
        # A pipe without a writer would block an ordinary open for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, "")
            if not stat.S_ISREG(status.st_mode):
                raise SliceError(Failure("read", "not_a_file", NOT_A_FILE))
            check_file_bytes(status.st_size)
            yield OpenFile(descriptor, status.st_size, time_of(status))
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SliceError(io_failure("read", error)) from None
    before = (status.st_size, status.st_mtime_ns, status.st_nlink)
    if (after.st_size, after.st_mtime_ns, after.st_nlink) != before:
        raise _changed()


def _changed() -> SliceError:
    return SliceError(Failure("read", "changed", CHANGED, transient=True))
