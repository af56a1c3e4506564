"""Device and host memory: blocks with guard gaps, and who touched which bytes of them last.

A block's accesses are kept until a later ordered one covers them, so that every new access is compared with
all that it could race with, whenever operations happen to run.
"""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from tests.double.findings import Findings
from tests.double.hosts import Clock, Host, Moment, caller

Bytes = npt.NDArray[np.uint8]

POISON = 0xFF
"""What fresh and freed memory holds: NaN as float32, white as pixels, all set as mask bits."""
FIRST_ADDRESS = 0xD000_0000_0000  # no process has memory of its own up there
GUARD = 1 << 21
ALIGNMENT = 512


@dataclass(slots=True, eq=False)
class Access:
    """Bytes `start` up to `stop` of a block, touched at one actor's tick; `op` is None for a host thread."""

    start: int
    stop: int
    writes: bool
    actor: int
    tick: int
    op: object | None
    what: str
    where: str

    def __str__(self) -> str:
        kind = "writes" if self.writes else "reads"
        return f"{self.what} ({self.where}) {kind} [{self.start}:{self.stop}]"


@dataclass(slots=True, eq=False)
class Block:
    """One allocation on the device, one range of host memory, or one execution context (`state`)."""

    kind: Literal["device", "pagelocked", "host", "state"]
    name: str
    address: int
    size: int
    owner: object | None = None  # keeps host memory alive
    freed: str = ""
    accesses: list[Access] = field(default_factory=list)
    _bytes: Bytes | None = None

    @property
    def bytes(self) -> Bytes:
        """uint8 [size]: the block's memory, made when it is first asked for."""
        if self._bytes is None:
            if self.kind == "device":
                self._bytes = np.full(self.size, POISON, np.uint8)
            else:
                raw = (ctypes.c_uint8 * self.size).from_address(self.address)
                self._bytes = np.ctypeslib.as_array(raw)
        return self._bytes

    def poison(self) -> None:
        """Overwrite what it holds; device memory that was never touched stays untouched."""
        if self.kind == "pagelocked" or self._bytes is not None:
            self.bytes[:] = POISON


@dataclass(frozen=True, slots=True)
class Reach:
    """What one operation touches of one block: `size` bytes from `offset`."""

    block: Block
    offset: int
    size: int
    writes: bool

    @property
    def bytes(self) -> Bytes:
        """uint8 [size]: a view on the memory, as it is when it is asked for."""
        return self.block.bytes[self.offset : self.offset + self.size]


class Memory:
    """All blocks by address."""

    def __init__(self, findings: Findings, total: int) -> None:
        self._findings = findings
        self.total = total
        self._starts: list[int] = []
        self._blocks: list[Block] = []
        self._next = FIRST_ADDRESS
        self.registered: dict[int, int] = {}

    def allocate(self, size: int, name: str) -> Block | None:
        """Device memory at an address that was never used before, None where there is not enough."""
        if size > self.free:
            return None
        block = Block("device", name, self._next, size)
        self._next += -(-size // ALIGNMENT) * ALIGNMENT + GUARD
        self._insert(block)
        return block

    @property
    def free(self) -> int:
        """Bytes of device memory that are not allocated."""
        return self.total - sum(block.size for block in self.live("device"))

    def live(self, kind: str) -> Iterator[Block]:
        """The blocks of that kind which are not freed."""
        return (block for block in self._blocks if block.kind == kind and not block.freed)

    def watch(self, kind: Literal["pagelocked", "host"], name: str, array: Bytes) -> Block:
        """Take host memory in, in the place of whatever lay there before."""
        block = Block(kind, name, array.__array_interface__["data"][0], array.nbytes, array)
        for old in list(self._overlapping(block.address, block.size)):
            place = self._blocks.index(old)
            del self._blocks[place], self._starts[place]
        self._insert(block)
        return block

    def forget(self) -> None:
        """Let go of everything."""
        for block in self._blocks:
            if block.kind == "device":
                block._bytes = None
        self._starts.clear()
        self._blocks.clear()

    def find(self, address: int, size: int) -> Block | None:
        """The block that has these bytes, freed ones too."""
        place = bisect.bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        block = self._blocks[place]
        return block if address + size <= block.address + block.size else None

    def is_pagelocked(self, address: int, size: int) -> bool:
        """Whether an asynchronous copy may have these bytes: all in one pagelocked or registered range."""
        block = self.find(address, size)
        if block is not None and block.kind == "pagelocked":
            return True
        return any(
            start <= address and address + size <= start + length for start, length in self.registered.items()
        )

    def touch(self, reach: Reach, clock: Clock, actor: int, op: object | None, what: str) -> None:
        """Enter an access and report all that it races with."""
        start, stop = reach.offset, reach.offset + reach.size
        if start == stop:
            return
        new = Access(start, stop, reach.writes, actor, clock[actor], op, what, caller())
        kept: list[Access] = []
        for old in reach.block.accesses:
            if old.start >= stop or start >= old.stop:
                kept.append(old)
                continue
            own = op is not None and old.op is op
            if own or clock.get(old.actor, 0) < old.tick:
                if new.writes or old.writes:
                    self._report(reach.block, old, new, own)
                kept.append(old)
            elif new.writes or not old.writes:
                kept.extend(_uncovered(old, start, stop))
            else:
                kept.append(old)
        kept.append(new)
        reach.block.accesses = kept

    def release(self, block: Block, moment: Moment, *, compare: bool) -> None:
        """Free a block: a write to all of it by that thread, at that time."""
        what = f"freed in thread {moment.host.name}"
        if compare:
            self.touch(Reach(block, 0, block.size, True), moment.clock, moment.host.actor, None, what)
        block.poison()
        block.freed = f"{what} ({caller()})"

    def unseen(self, host: Host, address: int, size: int) -> Access | None:
        """An operation on these bytes of host memory that the thread has not waited for."""
        for block in self._overlapping(address, size):
            for access in block.accesses:
                start, stop = block.address + access.start, block.address + access.stop
                touches = start < address + size and address < stop
                if touches and access.op is not None and not host.has_seen(access.actor, access.tick):
                    return access
        return None

    def _overlapping(self, address: int, size: int) -> Iterator[Block]:
        place = max(0, bisect.bisect_right(self._starts, address) - 1)
        for block in self._blocks[place:]:
            if block.address >= address + size:
                return
            if address < block.address + block.size:
                yield block

    def _insert(self, block: Block) -> None:
        place = bisect.bisect_right(self._starts, block.address)
        self._starts.insert(place, block.address)
        self._blocks.insert(place, block)

    def _report(self, block: Block, old: Access, new: Access, own: bool) -> None:
        if own:
            self._findings.add("race", f"{block.name}: {new}, which overlaps its own {old}")
        elif block.kind == "state":
            self._findings.add("race", f"{block.name} is in flight twice: {old}; {new}; nothing orders them")
        else:
            self._findings.add("race", f"{block.name}: {old}; {new}; nothing orders them")


def _uncovered(old: Access, start: int, stop: int) -> Iterator[Access]:
    """What is left of `old` without the bytes from `start` to `stop`."""
    if old.start < start:
        yield Access(old.start, start, old.writes, old.actor, old.tick, old.op, old.what, old.where)
    if old.stop > stop:
        yield Access(stop, old.stop, old.writes, old.actor, old.tick, old.op, old.what, old.where)
