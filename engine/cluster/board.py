"""The board: a small actor beside the driver, where units wait to be read and workers say how they are.

Handing units out and bringing their rows back is Ray Data's. The board knows what that does not tell: who is
at what, and that a unit which was given out twice, as its first worker seemed lost, is scored once.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Final

BEAT_S: Final = 3.0
"""How often a worker says that it lives."""
SILENT_S: Final = 15.0
"""One that has not for so long seems gone: its process, its node, or Ray has no room to restart it."""
_WAIT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What workers told: new lines for the user, nodes by worker, workers by the unit that they are at.

    `rows` are those that each has made so far, as some units take long; `silent` ones said nothing lately.
    """

    lines: tuple[str, ...] = ()
    workers: dict[str, str] = field(default_factory=dict)
    begun: dict[int, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()


class Board:
    """See above; Ray calls these. A worker goes by its actor's name, which it keeps when it is restarted."""

    def __init__(self) -> None:
        self._places: list[int] = []
        self._slices: dict[int, bytes] = {}
        self._begun: dict[int, str] = {}
        self._workers: dict[str, str] = {}
        self._handles: dict[str, Any] = {}
        self._rows: dict[str, int] = {}
        self._beats: dict[str, float] = {}
        self._lines: list[str] = []
        self._ended = False
        self._stop = asyncio.Event()
        self._changed = asyncio.Condition()

    async def put(self, unit: int, slices: bytes) -> None:
        """Have a unit read; again, where it was put before."""
        async with self._changed:
            self._slices[unit] = slices
            self._places.append(unit)
            self._changed.notify_all()

    async def again(self, unit: int) -> None:
        """Have a unit read once more, if it is not done."""
        if unit in self._slices:
            await self.put(unit, self._slices[unit])

    async def done(self, unit: int) -> None:
        """The unit's rows have come back."""
        self._slices.pop(unit, None)
        self._begun.pop(unit, None)

    async def end(self) -> None:
        """There is nothing more to read."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def stop(self) -> None:
        """Have workers finish the blocks that they are at, and begin no unit any more."""
        self._stop.set()
        await self.end()

    async def lose(self, worker: str) -> None:
        """A worker seems gone, and what it had begun is free for others. It may be heard again."""
        self._workers.pop(worker, None)
        self._beats.pop(worker, None)
        self._begun = {unit: who for unit, who in self._begun.items() if who != worker}

    async def hear(self) -> Heard:
        """What was told since."""
        lines, self._lines = tuple(self._lines), []
        since = time.monotonic() - SILENT_S
        silent = frozenset(worker for worker, beat in self._beats.items() if beat < since)
        return Heard(lines, dict(self._workers), dict(self._begun), dict(self._rows), silent)

    async def handles(self) -> list[Any]:
        """The actors that ever came up."""
        return list(self._handles.values())

    async def take(self, place: int) -> tuple[int, bytes] | tuple[()] | None:
        """The unit that was put as number `place`; empty when it is done, () when there is none yet.

        None when there will be none.
        """
        async with self._changed:
            if not self._ended and place >= len(self._places):
                try:
                    await asyncio.wait_for(self._changed.wait(), _WAIT_S)
                except TimeoutError:
                    return ()
        if place < len(self._places) and not self._stop.is_set():
            unit = self._places[place]
            return unit, self._slices.get(unit, b"")
        return None if self._ended else ()

    async def arrive(self, worker: str, node: str, handle: Any) -> None:
        """A worker is up, or up again, on `node`."""
        self._handles[worker] = handle
        await self.beat(worker, node, 0)

    async def begin(self, unit: int, worker: str) -> bool:
        """Whether `worker` is to score the unit: not where that is done, or another is at it."""
        self._beats[worker] = time.monotonic()  # or one that dies right after it would keep the unit
        free = unit in self._slices and self._begun.get(unit, worker) == worker
        if not free or self._stop.is_set():
            return False
        self._begun[unit] = worker
        return True

    async def beat(self, worker: str, node: str, rows: int) -> None:
        """A worker lives, on `node`, and has made so many rows."""
        self._workers[worker] = node
        self._rows[worker] = rows
        self._beats[worker] = time.monotonic()

    async def say(self, line: str) -> None:
        """A line for the user."""
        self._lines.append(line)

    async def wait_for_stop(self) -> None:
        """Comes back when the run is to stop."""
        await self._stop.wait()
