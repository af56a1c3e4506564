"""Python's own synchronisation, watched: who takes a lock knows what the last to let it go knew.

Everything else in `threading`, `queue` and `concurrent.futures` is made of these few, looked up when an
object is made; objects made before (or with a name that was imported from `threading`) tell nothing.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self
from unittest import mock

from tests.double.hosts import Clock, Hosts, join

_Lock = threading.Lock
_RLock = threading.RLock
_Thread = threading.Thread


@contextmanager
def watched_threads(hosts: Hosts, ended: Callable[[], None]) -> Iterator[None]:
    """Watch what is made inside; `ended` is called at the end of each thread, in it."""

    class Lock(_TrackedLock):
        def __init__(self) -> None:
            super().__init__(hosts, _Lock())

    class RLock(_TrackedRLock):
        def __init__(self) -> None:
            super().__init__(hosts, _RLock())

    start, join_thread = _Thread.start, _Thread.join

    def watched_start(thread: threading.Thread) -> None:
        born, run = hosts.current().publish(), thread.run

        def watched_run() -> None:
            host = hosts.current()
            host.name = thread.name
            host.receive(born)
            try:
                run()
            finally:
                ended()
                thread.__dict__["double_end"] = hosts.current().publish()

        thread.run = watched_run  # type: ignore[method-assign]
        start(thread)

    def watched_join(thread: threading.Thread, timeout: float | None = None) -> None:
        join_thread(thread, timeout)
        if "double_end" in thread.__dict__:
            hosts.current().receive(thread.__dict__["double_end"])

    def is_set(event: threading.Event) -> bool:
        with event._cond:  # type: ignore[attr-defined]
            return bool(event._flag)  # type: ignore[attr-defined]

    with (
        mock.patch.object(threading, "Lock", Lock),
        mock.patch.object(threading, "RLock", RLock),
        mock.patch.object(queue, "SimpleQueue", _PlainQueue),
        mock.patch.object(_Thread, "start", watched_start),
        mock.patch.object(_Thread, "join", watched_join),
        mock.patch.object(threading.Event, "is_set", is_set),
    ):
        yield


class _TrackedLock:
    def __init__(self, hosts: Hosts, lock: Any) -> None:
        self._hosts = hosts
        self._lock = lock
        self._clock: Clock = {}

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        got: bool = self._lock.acquire(blocking, timeout)
        if got:
            self._hosts.current().receive(self._clock)
        return got

    def release(self) -> None:
        join(self._clock, self._hosts.current().publish())
        self._lock.release()

    def locked(self) -> bool:
        taken: bool = self._lock.locked()
        return taken

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class _TrackedRLock(_TrackedLock):
    # What threading.Condition asks of a lock that may be held several times.

    def _release_save(self) -> Any:
        join(self._clock, self._hosts.current().publish())
        return self._lock._release_save()

    def _acquire_restore(self, state: Any) -> None:
        self._lock._acquire_restore(state)
        self._hosts.current().receive(self._clock)

    def _is_owned(self) -> bool:
        owned: bool = self._lock._is_owned()
        return owned


class _PlainQueue:
    """queue.SimpleQueue, which is written in C, made of what is watched."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._count = threading.Semaphore(0)

    @classmethod
    def __class_getitem__(cls, item: object) -> type[Self]:
        return cls

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self._items.append(item)
        self._count.release()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not self._count.acquire(block, timeout):
            raise queue.Empty
        return self._items.popleft()

    def put_nowait(self, item: Any) -> None:
        self.put(item)

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)
