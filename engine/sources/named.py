"""What is named, INPUTs and the paths of a list: where their masks go, and where they may not lie."""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH119

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from engine.cloud.addresses import is_address, plain
from engine.errors import UsageError
from engine.sources.entries import Entry, safe_text

# Folders below masks/ that stand for what a listed path says; a folder of such a name has an underscore more.
_UP, _ROOT, _HERE = b"_up", b"_root", b"_here"
_STANDS_FOR: Final = re.compile(rb"_+(up|root|here)")


def typed_path(text: str) -> bytes:
    """An INPUT as the path that it is, without / at its end."""
    raw = os.fsencode(plain(text))
    return raw.rstrip(b"/") or raw[:1]


def place_of(path: bytes) -> bytes:
    """Where a path or an address leads: what lies in the same place is the same."""
    return path if is_address(path) else os.path.realpath(path)


def refuse_overlap(path: bytes, out: bytes | None) -> None:
    """Raise UsageError where what is to be scored lies in the output, whose place is `out`, or around it."""
    if out is None:
        return
    place = place_of(path)
    if _contains(place, out):
        where = "is" if place == out else "lies inside"
        raise UsageError(
            f"the output {safe_text(out)!r} {where} the input {safe_text(path)!r}: choose another --out"
        )
    if _contains(out, place):
        raise UsageError(
            f"the input {safe_text(path)!r} lies inside the output {safe_text(out)!r}: choose another --out"
        )


def input_entries(inputs: Sequence[bytes], is_folder: Callable[[bytes], bool]) -> Iterator[Entry]:
    """INPUTs, in the order in which they were typed."""
    alone = len(inputs) == 1
    used: dict[bytes, int] = {}
    for position, typed in enumerate(inputs):
        name = os.path.basename(typed)
        if name in (b"", b".", b".."):
            name = os.path.basename(os.path.realpath(typed)) or b"root"
        stem = b"" if alone and is_folder(typed) else _unused(name, used)
        yield Entry(typed, typed, stem, position.to_bytes(8, "big"), named=True)


def list_entries(lines: Iterable[bytes]) -> Iterator[Entry]:
    """The paths of a list, as they come."""
    first_is_absolute: bool | None = None
    for position, line in enumerate(lines):
        listed = typed_path(os.fsdecode(line))
        absolute = listed.startswith(b"/")
        if first_is_absolute is None:
            first_is_absolute = absolute
        parts = [_mirrored(part) for part in listed.split(b"/") if part not in (b"", b".")]
        if absolute != first_is_absolute:
            parts.insert(0, _ROOT if absolute else _HERE)
        yield Entry(listed, listed, b"/".join(parts), position.to_bytes(8, "big"), named=True)


def _mirrored(part: bytes) -> bytes:
    if part == b"..":
        return _UP
    return b"_" + part if _STANDS_FOR.fullmatch(part) else part


def _contains(folder: bytes, path: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def _unused(name: bytes, used: dict[bytes, int]) -> bytes:
    """`name`, or with the first number that makes another of it; `used` tells where each name has come to."""
    candidate, number = name, used.get(name, 1)
    while candidate in used:
        number += 1
        candidate = b"%s_%d" % (name, number)
    used[name] = number
    used.setdefault(candidate, 1)
    return candidate
