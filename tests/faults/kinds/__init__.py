"""Every kind of fault, by its name. A kind runs the command, hurts it, and mends what it broke."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

from tests.faults.scene import Scene

_ROOMS = (
    "signals", "calls", "workers", "disks", "images", "sources", "clock", "rivals", "ledgers", "bundles",
    "screen",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Struck:
    """What was done (one line), and what the same command needs beside it to go on, as it was told to say.

    `data_changed`: the input is another now, and what is left is compared with a run on that. `missed`: the
    run had ended before its moment came, or never made the call that was to fail.
    """

    what: str
    then: tuple[str, ...] = ()
    data_changed: bool = False
    missed: bool = False


Strike = Callable[[Scene, random.Random], Struck]
Needs = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind; `needs` says why it cannot be had on this machine, "" where it can."""

    name: str
    strike: Strike
    needs: Needs


_KINDS: dict[str, Kind] = {}


def kind(needs: Needs = str) -> Callable[[Strike], Strike]:
    """Enter a function among the kinds, under its own name."""

    def enter(strike: Strike) -> Strike:
        _KINDS[strike.__name__] = Kind(strike.__name__, strike, needs)
        return strike

    return enter


def kinds() -> dict[str, Kind]:
    """All kinds, in the order of their rooms."""
    for room in _ROOMS:
        import_module(f"tests.faults.kinds.{room}")
    return dict(_KINDS)


def all_names() -> Iterator[str]:
    yield from kinds()
