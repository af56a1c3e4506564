"""Volumes: what the slices of one have in common, and how decode workers are told to read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from engine.sources.headers import refused

MAX_FILE_BYTES: Final = 2**29
"""Of a file with several slices: a decode worker keeps it in memory."""

Kind = Literal["pages", "nifti", "dicom"]
Channel = Literal["t1", "flair", "t1c"]
CHANNELS: Final[tuple[Channel, ...]] = ("t1", "flair", "t1c")
"""The order of the LGG set: before contrast, FLAIR, after contrast."""


def check_volume_bytes(size: int) -> None:
    """Raise SliceError `too_large` for a volume's file of `size` bytes that is not read for it."""
    if size > MAX_FILE_BYTES:
        told = f"{size:,} bytes: at most {MAX_FILE_BYTES:,} of a volume's file are read"
        raise refused("too_large", told)


@dataclass(frozen=True, slots=True)
class Window:
    """The value that becomes 0 and the one that becomes 255. Where both are one, what reaches it is 255."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """What the slices of a volume share; slices of one volume share the object.

    `recipe` is JSON that tells a decode worker all that it needs beside a slice's path and number. `order` is
    what the orders of its files begin with. `fingerprint` stands for what its window and channels are made
    of, "" where that is the slice's file alone.
    """

    recipe: str
    order: bytes = b""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Voxels of one sequence: a NIfTI file, a TIFF of several pages, or the files of a DICOM series.

    `window` is the one that all files of a series agree on; of None, it is to be taken from their voxels.
    """

    kind: Kind
    paths: tuple[bytes, ...] = ()
    window: Window | None = None

    def told(self) -> dict[str, Any]:
        """As JSON."""
        window = None if self.window is None else [self.window.low, self.window.high]
        return {"kind": self.kind, "paths": [path.decode("latin-1") for path in self.paths], "window": window}

    @classmethod
    def heard(cls, told: dict[str, Any]) -> Source:
        """Out of JSON."""
        window = None if told["window"] is None else Window(*told["window"])
        return cls(told["kind"], tuple(path.encode("latin-1") for path in told["paths"]), window)


def alone(kind: Kind, path: bytes) -> Volume:
    """The volume that one file is."""
    return Volume(recipe([Source(kind, (path,))]))


def recipe(sources: Sequence[Source | None]) -> str:
    """What workers are told: one source, or those of `CHANNELS`, None where a sequence is missing."""
    return json.dumps([source and source.told() for source in sources])


def understood(text: str) -> tuple[Source | None, ...]:
    """The sources of a recipe."""
    return tuple(told and Source.heard(told) for told in json.loads(text))


def fingerprint(*parts: object) -> str:
    """A text that differs where `parts` do."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]
