"""One run at a time in an output that lies in an object store: a lock object with a heartbeat.

A lock whose object has not changed for `LEASE_S` is of a run that is dead; whether it is, is watched from
here and not told by clocks. Only who creates the object, on condition that there is none, holds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from engine.cloud.addresses import Address
from engine.cloud.faults import StoreError, told
from engine.cloud.store import Store
from engine.errors import MachineError, UsageError
from engine.stop import StoppedError

BEAT_S: Final = 10.0
LEASE_S: Final = 45.0
_POLL_S: Final = 2.0
_LET_GO_S: Final = 5.0
_held_here: set[str] = set()
"""The owners of this process's locks: one that the store did not let go is held no more."""
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class StoreLock:
    """Held until the block ends; `out` is the address of the output, `name` the object's below that."""

    def __init__(self, store: Store, out: Address, name: str, says: Callable[[str], None]) -> None:
        self._store = store
        self._address = out
        self._path = f"{out.path}/{name}"
        self._says = says
        self._mine = {"owner": secrets.token_hex(8), **_process()}
        self._over = threading.Event()
        self._lost = False
        self._written = 0.0
        self._beats = threading.Thread(target=self._beat, daemon=True, name="store-lock")

    @property
    def owner(self) -> str:
        """What tells this holder from all others."""
        return str(self._mine["owner"])

    def take(self, stop: threading.Event) -> StoreLock:
        """Wait until it is clear whether the last holder is alive, then hold it.

        Raises UsageError where another run holds it, StoppedError once `stop` is set, and what `told` gives.
        """
        try:
            while not self._create():
                self._wait_for_the_dead(stop)
            if self._create():
                self._says(
                    f"{self._address.bucket}: this store has no conditional writes: nothing there keeps a "
                    "second run from the same output"
                )
        except StoreError as error:
            raise told(self._address, error, writing=True) from error
        _held_here.add(self.owner)
        self._beats.start()
        return self

    def expect(self) -> None:
        """Raise MachineError where another run holds the lock, and what `told` gives."""
        if time.monotonic() - self._written > LEASE_S:  # this process slept, or the store was away
            try:
                self._lost |= not self._is_mine()
            except StoreError as error:
                raise told(self._address, error, writing=True) from error
        if self._lost:
            raise MachineError(
                f"{self._address}: another run has taken over this output, as this one was not heard of for "
                f"{LEASE_S:g} s: wait for its end"
            )

    def __enter__(self) -> StoreLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the next one in, if the store still answers; else that will find the lock unchanged."""
        self._over.set()
        _held_here.discard(self.owner)
        if self._beats.ident is not None:
            self._beats.join()
        letting_go = self._store.begin(self._let_go())
        with suppress(StoreError, TimeoutError):
            letting_go.result(_LET_GO_S)
        letting_go.cancel()

    async def _let_go(self) -> None:
        if not self._lost and json.loads(await self._store.get(self._path)).get("owner") == self.owner:
            await self._store.delete([self._path])

    def _create(self) -> bool:
        now = time.monotonic()
        try:
            mine = _bytes(self._mine | {"try": time.monotonic_ns()})
            self._store.do(self._store.put(self._path, mine, create=True))
        except StoreError as error:
            if error.fault.kind == "taken":
                return False
            raise
        self._written = now
        return True

    def _is_mine(self, stop: threading.Event | None = None) -> bool:
        found = self._read(stop)
        return found is not None and found.get("owner") == self.owner

    def _wait_for_the_dead(self, stop: threading.Event) -> None:
        """Return when the lock's object is gone or of a run that ended, after taking it away."""
        first = self._read()
        if first is None:
            return
        until = time.monotonic() + LEASE_S
        if not _is_dead(first):
            self._says(
                f"{self._address}: an earlier run ({first.get('holder')}) may still be alive; watching it "
                f"for up to {LEASE_S:g} s"
            )
            while time.monotonic() < until:
                if stop.wait(_POLL_S):
                    raise StoppedError
                now = self._read()
                if now is None:
                    return
                if now != first:
                    raise UsageError(
                        f"{self._address}: another run ({now.get('holder')}) is writing there: wait for its "
                        "end, or give another --out"
                    )
        self._store.do(self._store.delete([self._path]))

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(BEAT_S):
            count += 1
            try:
                if not self._is_mine(self._over):
                    self._lost = True
                    return
                now = time.monotonic()
                self._store.do(self._store.put(self._path, _bytes({**self._mine, "beat": count})), self._over)
                self._written = now
            except StoppedError:
                return
            except StoreError:
                continue  # the run's own requests will tell

    def _read(self, stop: threading.Event | None = None) -> dict[str, Any] | None:
        try:
            found = json.loads(self._store.do(self._store.get(self._path), stop))
        except StoreError as error:
            if error.fault.kind == "missing":
                return None
            raise
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def _process() -> dict[str, Any]:
    """This process, so that a later one on this machine can tell that it is dead."""
    return {
        "holder": f"process {os.getpid()} on {socket.gethostname()}",
        "machine": _machine(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
    }


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether it was a process of this machine, and is none any more; or this very one, which has ended."""
    if holder.get("machine") != _machine():
        return False
    if holder.get("process") == os.getpid():
        return holder.get("owner") not in _held_here
    return holder.get("started") != _started(int(holder.get("process", 0)))


def _machine() -> str:
    """What no other machine, boot or container has; a hash, as it goes where others read."""
    unique = f"{_BOOT.read_text().strip()} {Path('/proc/self/ns/pid').stat().st_ino}"
    return hashlib.sha256(unique.encode()).hexdigest()[:16]


def _started(process: int) -> str:
    """When a process was started, in ticks since the boot; "" where there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode() + b"\n"
