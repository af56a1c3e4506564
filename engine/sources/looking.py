"""Folders looked at ahead of a walk over known files, by a process of its own: it is half of that walk."""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH118, PTH119

from __future__ import annotations

import os
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeVar

from engine.errors import MachineError
from engine.helper import Helper
from engine.look_worker import Answer, listing_of
from engine.sources.folders import Listing
from engine.sources.statuses import Statuses, look_at

T = TypeVar("T")

MANY: Final = 16_000
"""Known files behind which a process is started: most walks have fewer, and it takes a tenth of a second."""
_FRESH_S: Final = 1.0
"""How long a folder may have been listed before its turn comes; while slices are scored that can be hours."""
_AHEAD: Final = 2
"""Folders that are asked for before the walk comes to them."""


@dataclass(slots=True, eq=False)
class _Asked:
    answer: Answer | None = None
    since: float = field(default_factory=time.monotonic)


class Looking:
    """What a walk knows of what comes next, and the process that looks there.

    Where there is no core for that, or it cannot be started or dies, the walk looks by itself. Without
    `lists` it is not asked for folders: those of object stores, and parts of them, are not what it would see.
    """

    def __init__(self, *, lists: bool = True) -> None:
        self._lists = lists
        self._known = 0
        self._may_start = len(os.sched_getaffinity(0)) > 1
        self._helper: Helper | None = None
        self._asked: deque[_Asked] = deque()
        self._levels: list[tuple[bytes, deque[bytes]]] = []
        self._ahead: dict[bytes, Callable[[], Listing | None]] = {}

    @property
    def helps(self) -> bool:
        """Whether the process is there."""
        return self._helper is not None

    def passed(self, files: int) -> None:
        """So many known files more were passed over."""
        self._known += files
        if self._may_start and self._known >= MANY:
            self._may_start = False
            with suppress(MachineError):  # what can be done here needs none
                self._helper = Helper("engine.look_worker", "a look worker")

    def listing(self, path: bytes) -> Listing | None:
        """The folder at `path`, if it was looked at ahead, and just now."""
        told = self._ahead.pop(path, None)
        return None if told is None else told()

    def enter(self, path: bytes, listing: Listing) -> None:
        """The walk goes into this folder, which holds `listing`: those that come next are looked at."""
        if self._levels:
            siblings = self._levels[-1][1]
            while siblings and siblings.popleft() != os.path.basename(path):
                pass
        folders = (name for _, name in listing.names if name in listing.odd) if listing.odd else ()
        self._levels.append((os.path.join(path, b""), deque(folders)))
        if self._lists and self.helps:
            following = (above + name for above, names in reversed(self._levels) for name in names)
            self._ahead = {
                each: self._ahead.get(each) or self._ask("list", each, listing_of)
                for each in islice(following, _AHEAD)
            }

    def leave(self) -> None:
        """The walk is through with the folder that it entered last."""
        self._levels.pop()

    def statuses(self, folder: bytes, names: Sequence[bytes]) -> Callable[[], Statuses]:
        """Begin to look at files; what is returned gives what `look_at` does."""
        while self._asked:  # one that is asked much while it answers could wait for this one, as this for it
            self._receive()
        told = self._ask("look", b"\0".join((folder, *names)), lambda answer: array("q", answer[1]))
        return lambda: told() or look_at(folder, names)

    def close(self) -> None:
        """End the process; no other is started."""
        self._may_start = False
        helper, self._helper = self._helper, None
        self._asked.clear()
        if helper is not None:
            helper.end()

    def _ask(self, what: str, data: bytes, read: Callable[[Answer], T]) -> Callable[[], T | None]:
        """Ask the process; what is returned gives its answer, None without one, or where that is stale."""
        asked = _Asked()
        if self._helper is None:
            return lambda: None
        if not self._helper.send(what, data):
            self.close()
            return lambda: None
        self._asked.append(asked)

        def told() -> T | None:
            if time.monotonic() - asked.since > _FRESH_S:
                return None
            while asked in self._asked:
                self._receive()
            return None if asked.answer is None else read(asked.answer)

        return told

    def _receive(self) -> None:
        """Take the answer to what was asked first."""
        answer = None if self._helper is None else self._helper.receive()
        if answer is None:
            self.close()
        else:
            self._asked.popleft().answer = answer
