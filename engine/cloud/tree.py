"""Folders of an object store as discovery walks them: listed one by one, the next ones meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Final

from engine.cloud.addresses import Address, is_address
from engine.cloud.faults import StoreError, told
from engine.cloud.store import Found, Store, Stores, wait_for
from engine.errors import SliceError, UsageError
from engine.sources import dicom
from engine.sources.files import io_failure, read_file
from engine.sources.folders import Listing, sort_names
from engine.sources.series import dicom_refused, start_of
from engine.sources.shards import FolderPart

LISTED_AHEAD: Final = 8
"""Folders whose listing is under way while an earlier one is scored."""
LOOKED_AHEAD: Final = 64
"""Lines of a list whose objects are looked at while an earlier one is scored."""
_EMPTY: Final = ("InvalidRange", "416")
"""What is said of the start of an object of no bytes."""


@dataclass(frozen=True, slots=True)
class _Name:
    """What a listing has of one name, as `os.DirEntry` would tell it."""

    name: bytes
    path: bytes
    folder: bool

    def is_file(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002 - there are no links
        return not self.folder

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        return self.folder

    def is_symlink(self) -> bool:
        return False


class Tree:
    """Looks into object stores for one walk; not to be shared by threads.

    What was listed is remembered until it is looked at, so memory is bounded by the largest folders.
    """

    def __init__(self, stores: Stores, stop: Event) -> None:
        self._stores = stores
        self._stop = stop
        self._known: dict[bytes, os.stat_result] = {}
        self._folders: dict[bytes, Future[list[Found]]] = {}
        self._later: dict[bytes, deque[bytes]] = {}
        self._looks: dict[bytes, Future[Found]] = {}

    def looked_at_ahead(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The `lines` of a list that is all there, those behind being looked at meanwhile."""
        waiting: deque[bytes] = deque()
        for line in lines:
            path = line.rstrip(b"/")
            if is_address(path) and path not in self._looks:
                with suppress(UsageError):  # the walk itself will meet it
                    address, store = self._at(path)
                    self._looks[path] = store.begin(store.look(address.path))
            waiting.append(line)
            if len(waiting) > LOOKED_AHEAD:
                yield waiting.popleft()
        yield from waiting

    def stat(self, path: bytes) -> os.stat_result:
        """What is at the address `path`, without a request where its folder was listed.

        Raises OSError where there is nothing or access is denied, MachineError where no answer comes.
        """
        known = self._known.pop(path, None)
        if known is not None:
            return known
        address, store = self._at(path)
        future = self._looks.pop(path, None) or store.begin(store.look(address.path))
        try:
            found = wait_for(future, self._stop)
        except StoreError as error:
            raise _as_a_disk(address, error) from error
        return _status(found, path)

    def list_folder(self, path: bytes, part: FolderPart | None) -> Listing:
        """List a folder, or `part` of its objects. Raises as `stat` does, and UsageError for DICOM files."""
        address, store = self._at(path)
        future = self._folders.pop(path, None) or store.begin(store.folder(address.path))
        self._begin_another(os.path.dirname(path))  # noqa: PTH120 - an address
        try:
            found = wait_for(future, self._stop)
        except StoreError as error:
            raise _as_a_disk(address, error) from error
        names = {each.name.encode("utf-8", "surrogateescape"): each for each in found if each.name}
        entries = (_Name(name, path + b"/" + name, each.folder) for name, each in names.items())
        listing = sort_names(entries, part, self.is_dicom)
        if listing.dicoms:
            raise dicom_refused(path + b"/" + listing.dicoms[0][1])
        self._later[path] = deque()
        for _, name in listing.names:
            below = path + b"/" + name
            self._known[below] = _status(names[name], below)
            if names[name].folder:
                self._later[path].append(below)
        for _ in range(LISTED_AHEAD):
            self._begin_another(path)
        return listing

    def _begin_another(self, parent: bytes) -> None:
        later = self._later.get(parent)
        if not later:
            self._later.pop(parent, None)
            return
        path = later.popleft()
        address, store = self._at(path)
        self._folders[path] = store.begin(store.folder(address.path))

    def read(self, path: bytes) -> bytes:
        """The bytes of a file, of this machine or in a store. Raises SliceError; MachineError."""
        if not is_address(path):
            return read_file(path)
        address, store = self._at(path)
        try:
            return store.do(store.get(address.path), self._stop)
        except StoreError as error:
            if isinstance(failed := _as_a_disk(address, error), OSError):
                raise SliceError(io_failure("read", failed)) from None
            raise failed from error

    def start(self, path: bytes, count: int) -> bytes:
        """The first bytes of a file, of this machine or in a store. Raises as `stat` does; SliceError."""
        if not is_address(path):
            return start_of(path, count)
        address, store = self._at(path)
        try:
            return store.do(store.get(address.path, count), self._stop)
        except StoreError as error:
            if error.fault.word in _EMPTY:
                return b""
            raise _as_a_disk(address, error) from error

    def is_dicom(self, path: bytes) -> bool:
        """Whether an object begins as DICOM files do."""
        address, store = self._at(path)
        try:
            start = store.do(store.get(address.path, dicom.MAGIC_AT + len(dicom.MAGIC)), self._stop)
        except StoreError as error:
            if error.fault.kind == "passing":
                raise told(address, error) from error
            return False
        return start.endswith(dicom.MAGIC)

    def _at(self, path: bytes) -> tuple[Address, Store]:
        address = Address.parse(path.decode("utf-8", "surrogateescape"))
        return address, self._stores.of(address)


def _status(found: Found, path: bytes) -> os.stat_result:
    """An object with its bytes and time (see `Found`), or a folder that is no other one."""
    if found.folder:
        return os.stat_result((stat.S_IFDIR, hash(path), -1, 1, 0, 0, 0, 0, 0, 0))
    return os.stat_result(
        (stat.S_IFREG, 0, -1, 1, 0, 0, found.size, 0, 0, 0), {"st_mtime_ns": found.mtime_ns}
    )


def _as_a_disk(address: Address, error: StoreError) -> Exception:
    """What a disk would raise where an object is not there or not to be had; else the end of the run."""
    kind, word = error.fault.kind, error.fault.word
    if kind == "missing":
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if kind == "denied":
        return PermissionError(
            errno.EACCES, f"access denied ({word}): the credentials in use may not list and read there"
        )
    return told(address, error)
