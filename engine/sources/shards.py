"""Shards: an input divided among jobs that know nothing of one another.

What belongs to a shard follows from names alone, by a hash, so that every job finds its part by itself, and
files that come later move no others. A folder stays whole, as its slices may be one volume or patient. What
lies directly in the one INPUT, is named or stands in a list goes by itself, or a flat folder of a million
pictures would be one job's.
"""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH118, PTH120

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from engine.errors import UsageError
from engine.sources import endings
from engine.sources.entries import Entry, SourceFile, Unlisted

if TYPE_CHECKING:
    from engine.sources.folders import Kind

MOST: Final = 100_000
"""Shards of an input; more is a slip of the pen."""
_TEXT: Final = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)
_HASH_BYTES: Final = 8
_DIGESTS: Final = 1 << 8 * _HASH_BYTES


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` shards, `number` from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `3/16`. Raises UsageError."""
        found = _TEXT.fullmatch(text.strip())
        if found is None or not 1 <= int(found[2]) <= MOST:
            raise UsageError(f"--shard {text}: give I/N, such as 3/16 for the third of 16 shards")
        number, count = int(found[1]), int(found[2])
        if not 1 <= number <= count:
            hint = " (Kubernetes counts from 0: add 1 to JOB_COMPLETION_INDEX)" if number == 0 else ""
            raise UsageError(f"--shard {text}: shards of {count} are 1/{count} to {count}/{count}{hint}")
        return cls(number, count)

    @property
    def text(self) -> str:
        """What `parse` reads."""
        return f"{self.number}/{self.count}"

    def has(self, name: bytes) -> bool:
        """Whether what is called so belongs to it."""
        return _hash(name) % self.count == self.number - 1


@dataclass(frozen=True, slots=True)
class Seen:
    """What a walk came by, its own shard's or not: so many files, whose names' hashes add up to `digest`.

    Two walks that saw the same names have equal ones, whatever the order.
    """

    names: int
    digest: str


@dataclass(slots=True)
class Dealt:
    """Tells a walk what is its shard's. `stacks`: pictures of one folder are one volume and stay together."""

    shard: Shard
    stacks: bool = False
    names: int = 0
    _sum: int = 0

    @property
    def seen(self) -> Seen:
        """What was come by since `begin`."""
        return Seen(self.names, f"{self._sum:0{2 * _HASH_BYTES}x}")

    def begin(self) -> None:
        """Forget what was seen."""
        self.names = self._sum = 0

    def see(self, name: bytes) -> None:
        """Count a name of the input."""
        self.names += 1
        self._sum = (self._sum + _hash(name)) % _DIGESTS

    def has_named(self, entry: Entry) -> bool:
        """Whether a file that is an INPUT itself, or stands in a list, is this shard's."""
        self.see(entry.stem)
        return self.shard.has(os.path.dirname(entry.shown) if self._stacked(entry.path) else entry.stem)

    def has_file(self, entry: Entry, folder: Entry) -> bool:
        """Whether a file in `folder` is."""
        return self.shard.has(folder.stem if folder.stem or self._stacked(entry.path) else entry.stem)

    def has_folder(self, folder: Entry) -> bool:
        """Whether what is told of a folder as a whole is."""
        return self.shard.has(folder.stem)

    def has_found(self, found: SourceFile | Unlisted, folder: Entry) -> bool:
        """Whether a slice of a series or a patient in `folder`, or what was refused there, is."""
        if folder.stem:
            return self.shard.has(folder.stem)
        source = found.source if isinstance(found, SourceFile) else None
        return self.shard.has(source.order if source is not None and source.order else found.order)

    def part_of(self, folder: Entry, *, combined: bool) -> FolderPart:
        """What of `folder` is its own, name by name. `combined`: files tell what volume they are of."""
        return FolderPart(self, folder, self.shard.has(folder.stem), combined)

    def _stacked(self, path: bytes) -> bool:
        return self.stacks and not path.lower().endswith(endings.NIFTI)  # that is a volume by itself


@dataclass(frozen=True, slots=True)
class FolderPart:
    """What of one folder is the shard's own; `mine` is the answer for all that goes with the folder."""

    dealt: Dealt
    folder: Entry
    mine: bool
    combined: bool

    @property
    def looks(self) -> bool:
        """Whether its DICOM files are looked at: only their headers tell which series are the shard's."""
        return self.mine or self.combined or not self.folder.stem

    def see(self, name: bytes) -> None:
        """Count a file that may hold slices."""
        self.dealt.see(os.path.join(self.folder.stem, name))

    def has(self, name: bytes, kind: Kind) -> bool:
        """Whether a file of this name is."""
        if self.combined and kind == "nifti":
            return True  # only all together tell what each is
        if self.folder.stem or (self.dealt.stacks and kind == "picture"):
            return self.mine
        return self.dealt.shard.has(name)


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=_HASH_BYTES).digest(), "big")
