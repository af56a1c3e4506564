"""Host threads and vector clocks: who has seen what.

A clock maps an actor (a host thread or a stream) to the last of its ticks that is known to lie in the past.
"""

from __future__ import annotations

import itertools
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Clock = dict[int, int]

_PASSED_OVER = (str(Path(__file__).parent), threading.__file__)
_PROGRAMS = "programs.py"
_numbers = itertools.count(1)


def new_actor() -> int:
    """A number that no other thread or stream has."""
    return next(_numbers)


def join(into: Clock, other: Clock) -> None:
    """Let `into` know all that `other` knows."""
    for actor, tick in other.items():
        if into.get(actor, 0) < tick:
            into[actor] = tick


@dataclass(frozen=True, slots=True)
class Moment:
    """A thread at one time: what it knew then, and its current context."""

    host: Host
    clock: Clock
    context: Any


@dataclass(slots=True, eq=False)
class Host:
    """One host thread: its clock, and its stack of CUDA contexts (pycuda keeps one a thread)."""

    name: str
    actor: int = field(default_factory=new_actor)
    clock: Clock = field(default_factory=dict)
    contexts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock[self.actor] = 1

    def publish(self) -> Clock:
        """What this thread knows now, for whoever is to come after it."""
        token = dict(self.clock)
        self.clock[self.actor] += 1
        return token

    def receive(self, token: Clock) -> None:
        """Come after whoever published `token`."""
        join(self.clock, token)

    def now(self) -> Moment:
        """This thread as it is."""
        return Moment(self, dict(self.clock), self.contexts[-1] if self.contexts else None)

    def has_seen(self, actor: int, tick: int) -> bool:
        """Whether that tick of that actor lies in this thread's past."""
        return self.clock.get(actor, 0) >= tick


class Hosts:
    """The host threads that have come by."""

    def __init__(self) -> None:
        self._local = threading.local()
        self.all: list[Host] = []

    def current(self) -> Host:
        """The calling thread's."""
        host: Host | None = getattr(self._local, "host", None)
        if host is None:
            # threading.current_thread() would make one up for a thread that is only just starting.
            known = threading._active.get(threading.get_ident())  # type: ignore[attr-defined]
            host = self._local.host = Host("a thread" if known is None else known.name)
            self.all.append(host)
        return host


def caller() -> str:
    """The innermost line outside the double, such as "lanes.py:120 in _copy_in"."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_passed_over(frame.f_code.co_filename):
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} in {code.co_name}"


def _is_passed_over(path: str) -> bool:
    return path.startswith(_PASSED_OVER) and not path.endswith(_PROGRAMS)
