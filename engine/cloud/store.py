"""An object store through fsspec: a few patient requests, any number of them at once.

Credentials, endpoints and profiles are the clients' own matter: their environment, their files, and what
fsspec is configured with.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from engine.cloud.addresses import Address
from engine.cloud.faults import StoreError, fault_of, told
from engine.errors import MachineError
from engine.stop import StoppedError

T = TypeVar("T")

PATIENCE_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0)
"""What is waited, give or take a quarter, before each new try: a store that throttles wants some peace."""
ATTEMPT_S: Final = 300.0
"""No single request takes longer, whatever its size."""
AT_ONCE: Final = 64
"""Requests under way."""
TOGETHER: Final = 512
"""Of many writes, those that are held in memory."""
_TICK_S: Final = 0.1
_CONNECT_S: Final = 10
_READ_S: Final = 30
_NS: Final = 1_000_000_000
_UNHEARD: Final = logging.NullHandler()
"""For what gcsfs raises and logs too: Python prints that, traces and all, where nobody collects logs."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object, or a folder: what others' names begin with.

    `size` is in bytes. The whole seconds of `mtime_ns` are the object's time, the rest stands for its ETag:
    one that was replaced within a second is told by it.
    """

    name: str
    folder: bool
    size: int = 0
    mtime_ns: int = 0


class Store:
    """One kind of store. Every request is tried again for a while; then it raises StoreError."""

    def __init__(self, scheme: str) -> None:
        """Raises MachineError where the extra is missing."""
        self._files = _open(scheme)
        self._loop: asyncio.AbstractEventLoop = self._files.loop
        self._room = asyncio.Semaphore(AT_ONCE)
        self.patience = PATIENCE_S

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have one of the requests below done meanwhile."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def do(self, work: Coroutine[Any, Any, T], stop: threading.Event | None = None) -> T:
        """Have it done. Raises StoppedError once `stop` is set."""
        future = self.begin(work)
        try:
            return wait_for(future, stop)
        except BaseException:
            future.cancel()
            raise

    async def get(self, path: str, end: int | None = None, *, once: bool = False) -> bytes:
        """An object's bytes, or those before `end`."""
        limits = {} if end is None else {"start": 0, "end": end}
        data = await self._patiently(lambda: self._files._cat_file(path, **limits), once=once)
        return bytes(data)

    async def expect(self, path: str) -> None:
        """Raise StoreError unless what is at `path` is told at the first try."""
        await self._patiently(lambda: self._files._info(path), once=True)

    async def put(self, path: str, data: bytes, *, create: bool = False) -> None:
        """Write an object whole. With `create` only where there is none; else StoreError, `taken`."""
        mode = "create" if create else "overwrite"
        try:
            await self._patiently(lambda: self._files._pipe_file(path, data, mode=mode))
        except StoreError as error:
            # The answer to an earlier try of the same request may have been what was lost.
            if error.fault.kind != "taken" or await self.get(path) != data:
                raise

    async def put_file(self, path: str, file: Path) -> None:
        """Write a large file, in pieces that become an object at once or not at all."""
        await self._patiently(lambda: self._files._put_file(str(file), path))

    async def delete(self, paths: Iterable[str]) -> None:
        """Delete objects, whether they are there or not."""

        async def one(path: str) -> None:
            try:
                await self._patiently(lambda: self._files._rm_file(path))
            except StoreError as error:
                if error.fault.kind != "missing":
                    raise

        await self.together(one(path) for path in paths)

    async def look(self, path: str) -> Found:
        """What is at `path`. Raises StoreError, `missing`."""
        try:
            return _found(await self._patiently(lambda: self._files._info(path)), path)
        except StoreError as error:
            if error.fault.kind == "denied":  # this request's answer has no room for why; a listing's has
                await self.folder(path)
            raise

    async def folder(self, path: str) -> list[Found]:
        """What is right below `path`, by name; nothing where there is no such folder."""

        async def listed() -> list[dict[str, Any]]:
            try:
                entries: list[dict[str, Any]] = await self._files._ls(path, detail=True, refresh=True)
            except FileNotFoundError as error:
                if error.__cause__ is not None:  # there is no such bucket
                    raise
                return []
            return entries

        below = f"{path}/"
        return [
            _found(each, str(each["name"]).removeprefix(below))
            for each in await self._patiently(listed)
            if str(each["name"]).startswith(below)
        ]

    def everything(self, path: str) -> Iterator[str]:
        """The paths of all objects below `path`, a folder at a time."""
        for each in self.do(self.folder(path)):
            if not each.name:
                continue
            if each.folder:
                yield from self.everything(f"{path}/{each.name}")
            else:
                yield f"{path}/{each.name}"

    async def together(self, works: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Do all of them, some hundreds at a time; the first error is raised when none is under way."""
        left = iter(works)
        while some := list(islice(left, TOGETHER)):
            for outcome in await asyncio.gather(*some, return_exceptions=True):
                if outcome is not None:
                    raise outcome

    async def _patiently(self, request: Callable[[], Awaitable[T]], *, once: bool = False) -> T:
        waits = iter(() if once else self.patience)
        while True:
            try:
                async with self._room:
                    return await asyncio.wait_for(request(), ATTEMPT_S)
            except Exception as error:
                fault = fault_of(error)
                wait = next(waits, None)
                if fault.kind != "passing" or wait is None:
                    raise StoreError(fault) from error
            await asyncio.sleep(wait * random.uniform(0.75, 1.25))


class Stores:
    """The stores of a run, each opened when it is first needed."""

    def __init__(self) -> None:
        self._open: dict[str, Store] = {}
        self._turn = threading.Lock()

    def of(self, address: Address) -> Store:
        """The store of this address. Raises MachineError where the extra is missing."""
        with self._turn:
            if address.scheme not in self._open:
                self._open[address.scheme] = Store(address.scheme)
            return self._open[address.scheme]


def wait_for(future: Future[T], stop: threading.Event | None) -> T:
    """What `future` comes to. Raises StoppedError once `stop` is set."""
    while True:
        try:
            return future.result(_TICK_S)
        except TimeoutError:
            if future.done():
                return future.result()
            if stop is not None and stop.is_set():
                raise StoppedError from None
        except CancelledError:
            raise StoppedError from None


def _open(scheme: str) -> Any:
    """The asynchronous file system of a scheme, its patience turned off: ours knows what is at stake."""
    name, package = ("s3", "s3fs") if scheme == "s3" else ("gcs", "gcsfs")
    try:
        import fsspec
        from fsspec.config import conf

        kind = fsspec.get_filesystem_class(name)
    except ImportError as error:
        raise MachineError(
            f"{scheme}:// needs fsspec and {package}, which are not installed: pip install 'tumorscan[cloud]'"
        ) from error
    logging.getLogger("gcsfs").addHandler(_UNHEARD)
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if name == "s3":
        timeouts = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S, "max_pool_connections": AT_ONCE}
        retries = {"retries": {"mode": "standard", "total_max_attempts": 1}}
        configured = conf.get("s3", {}).get("config_kwargs", {})
        # One request an object: with more, s3fs asks for its size first.
        options |= {"config_kwargs": {**timeouts, **retries, **configured}, "max_concurrency": 1}
    try:
        files = kind(**options)
    except Exception as error:  # Google's looks for its credentials at once
        raise told(f"{scheme}://", StoreError(fault_of(error))) from error
    if name == "s3":
        files.retries = 1
    return files


def _found(info: dict[str, Any], name: str) -> Found:
    if info["type"] == "directory":
        return Found(name, folder=True)
    when = info.get("LastModified") or info.get("mtime") or info.get("updated") or 0
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    seconds = int(when.timestamp()) if isinstance(when, datetime) else int(when)
    tag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    return Found(name, False, int(info["size"] or 0), seconds * _NS + zlib.crc32(tag.encode()) % _NS)
