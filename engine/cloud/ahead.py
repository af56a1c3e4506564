"""Objects fetched ahead of the decode workers, into memory that ends with this process.

What is fetched becomes a file without a name (a memfd), which workers open as /proc/PID/fd/N: they read an
object as any other file, nothing lies on a disk, and a killed run leaves nothing behind. Those that wait are
bounded in number and bytes; those that were given are bounded by the ring, and end when they are decoded.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final

from engine.cloud.addresses import Address, is_address
from engine.cloud.faults import StoreError, told
from engine.cloud.store import Store, Stores, wait_for
from engine.errors import Failure, MachineError, SliceError
from engine.ring import DecodedBlock
from engine.sources.entries import SourceFile, Unlisted
from engine.sources.files import CHANGED, check_file_bytes, io_failure
from engine.sources.volumes import Volume, alone, check_volume_bytes, understood
from engine.stop import StoppedError

FILES_AHEAD: Final = 192
BYTES_AHEAD: Final = 2**28
"""What may wait to be given; one object may be larger than that."""
STRIKES: Final = 8
"""Objects in a row that could not be had: then it is not theirs, and the run ends before it blames more."""
_MOST_FILES: Final = 65_536
_TICK_S: Final = 0.5
"""A wait of so long has the block that is being filled decoded as it is."""

Entry = SourceFile | Unlisted


@dataclass(slots=True)
class _Object:
    """An object on its way. `left` counts its slices that were given and are not decoded, and `_last`."""

    file: SourceFile
    data: Future[bytes] | None
    number: int
    descriptor: int = -1
    left: int = 1
    failure: Failure | None = None
    source: Volume | None = None

    @property
    def path(self) -> bytes:
        # Descriptors are used again, and a worker knows the volume that it has open by its path: the object's
        # number makes it another one, in slashes that lead nowhere.
        number = b"".join(b"/." if bit == "1" else b"/" for bit in f"{self.number:b}")
        return b"/proc/%d%s/fd/%d" % (os.getpid(), number, self.descriptor)


@dataclass(slots=True)
class Ahead:
    """Gives what is to be scored with its bytes at hand; slices on a disk pass through.

    `stop` cuts short what is waited for.
    """

    stores: Stores
    stop: threading.Event
    _held: dict[bytes, _Object] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _waiting: deque[tuple[Entry, _Object | None]] = field(default_factory=deque)
    _bytes: int = 0
    _last: _Object | None = None
    _strikes: int = 0
    _begun: int = 0

    def fetched(self, entries: Iterable[Entry | None]) -> Iterator[Entry | None]:
        """The `entries` in order, those of object stores as files of this machine; None while it waits.

        What cannot be had is given as an Unlisted. Raises MachineError where the store does not answer, lets
        nothing be read any more, or knows the credentials no longer.
        """
        try:
            for entry in entries:
                if entry is None:
                    yield None
                else:
                    self._waiting.append((entry, self._begin(entry)))
                while self._waiting and (self._is_full() or _is_there(self._waiting[0][1])):
                    yield from self._next()
            while self._waiting:
                yield from self._next()
            self._let_go_of_last()
        except StoppedError:
            yield None  # who asked for the stop looks for it then

    def decoded(self, block: DecodedBlock) -> None:
        """Workers are done with these slices; the pages of one that has several are yet to come."""
        with self._turn:
            for piece in block.slices:
                held = self._held.get(piece.file.path)
                if held is not None:
                    held.left += piece.pages - 1
                    self._end(held)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget all that waits and is held."""
        for _, each in self._waiting:
            if each is not None and each.data is not None:
                each.data.cancel()
        self._waiting.clear()
        with self._turn:
            for held in self._held.values():
                os.close(held.descriptor)
            self._held.clear()

    def _begin(self, entry: Entry) -> _Object | None:
        """Ask for the object of a slice. Slices of one file follow each other and share it."""
        if isinstance(entry, Unlisted) or not is_address(entry.path):
            return None
        if self._last is not None and self._last.file.path == entry.path:
            return self._last
        address, store = self._at(entry)
        if not self._begun:
            _raise_limit()
        self._begun += 1
        begun = _Object(entry, None, self._begun)
        begun.failure = _too_large(entry)
        if begun.failure is None:
            begun.data = store.begin(store.get(address.path))
            self._bytes += entry.size
        self._let_go_of_last()
        self._last = begun
        return begun

    def _is_full(self) -> bool:
        return len(self._waiting) >= FILES_AHEAD or self._bytes >= BYTES_AHEAD

    def _next(self) -> Iterator[Entry | None]:
        held = self._waiting[0][1]
        while held is not None and held.data is not None and not wait([held.data], _TICK_S).done:
            yield None
        yield self._give(*self._waiting.popleft())

    def _give(self, entry: Entry, held: _Object | None) -> Entry:
        if held is None or isinstance(entry, Unlisted):
            return entry
        if held.data is not None:
            self._receive(held, held.data)
            held.data = None
        if held.failure is not None:
            return Unlisted(entry.image_path, entry.order, held.failure, entry)
        with self._turn:
            held.left += 1
        return replace(entry, path=held.path, source=None if entry.source is None else held.source)

    def _receive(self, held: _Object, future: Future[bytes]) -> None:
        self._bytes -= held.file.size
        try:
            data = self._had(held.file, future)
        except SliceError as error:
            held.failure = error.failure
            return
        self._strikes = 0
        if len(data) != held.file.size:
            held.failure = Failure("read", "changed", CHANGED, transient=True)
            return
        held.descriptor = _in_memory(data, held.file.mtime_ns)
        held.source = _here(held.file.source, held.path)
        with self._turn:
            self._held[held.path] = held
            if held is not self._last:
                held.left -= 1

    def _had(self, file: SourceFile, future: Future[bytes]) -> bytes:
        """The object's bytes. Raises SliceError where it is the object that fails, else MachineError."""
        address, store = self._at(file)
        try:
            return future.result()
        except StoreError as error:
            kind, word, failed = error.fault.kind, error.fault.word, error
        if kind in ("credentials", "refused"):
            raise told(address, failed) from failed
        if kind == "missing":
            raise SliceError(io_failure("read", FileNotFoundError(errno.ENOENT, "")))
        self._strikes += 1
        if self._strikes >= STRIKES:
            raise told(address, failed) from failed
        if kind == "denied":
            raise SliceError(io_failure("read", PermissionError(errno.EACCES, "")))
        try:
            wait_for(store.begin(store.expect(Address.parse(address.bucket).path)), self.stop)
        except StoreError as answer:
            if answer.fault.kind == "passing":
                raise told(address, failed) from failed
        try:  # the store is there, perhaps again: then so is this one
            return wait_for(store.begin(store.get(address.path, once=True)), self.stop)
        except StoreError:
            reason = f"the store gives others, not this one ({word})"
            raise SliceError(Failure("read", "store", reason, transient=True)) from None

    def _let_go_of_last(self) -> None:
        """No more slices of the last object will be given."""
        with self._turn:
            if self._last is not None and self._last.descriptor >= 0:
                self._last.left -= 1
                self._end(self._last)

    def _end(self, held: _Object) -> None:
        if held.left == 0:
            del self._held[held.path]
            os.close(held.descriptor)

    def _at(self, file: SourceFile) -> tuple[Address, Store]:
        address = Address.parse(file.path.decode("utf-8", "surrogateescape"))
        return address, self.stores.of(address)


def _is_there(held: _Object | None) -> bool:
    return held is None or held.data is None or held.data.done()


def _too_large(file: SourceFile) -> Failure | None:
    """Why a file is not fetched, as a disk's would not be read."""
    try:
        check_file_bytes(file.size)
        if file.source is not None:
            check_volume_bytes(file.size)
    except SliceError as error:
        return error.failure
    return None


def _here(source: Volume | None, path: bytes) -> Volume:
    """The volume of one file, as it is read at `path`; of a picture the one that its pages are."""
    if source is None:
        return alone("pages", path)
    (found,) = understood(source.recipe)
    assert found is not None
    return alone(found.kind, path)


def _in_memory(data: bytes, mtime_ns: int) -> int:
    try:
        descriptor = os.memfd_create("tumorscan-object", os.MFD_CLOEXEC)
        with open(os.dup(descriptor), "wb") as file:
            file.write(data)
        os.utime(descriptor, ns=(mtime_ns, mtime_ns))
    except OSError as error:
        raise MachineError(
            f"an object cannot be held in memory ({error.strerror}): raise ulimit -n"
        ) from error
    return descriptor


def _raise_limit() -> None:
    """As many open files as this user may have: one for each object on its way to a worker."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
