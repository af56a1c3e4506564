"""A folder's listing: what of it is to be scored, told by names, and where they say nothing by a look."""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH122

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Final, Literal

from engine.sources import endings
from engine.sources.series import is_dicom

Kind = Literal["picture", "nifti", "dicom", "perhaps", "mask", "other"]

_PICTURES: Final = frozenset(endings.PICTURES)
_MASK: Final = b"_mask"
_DIGITS: Final = re.compile(rb"[0-9]+")
_NUMBER: Final = b"0"

KeyedName = tuple[bytes, bytes]
"""A name behind its `natural_key`."""


@dataclass(slots=True)
class Listing:
    """What a folder holds, sorted: `names` of folders, pictures, NIfTI files and links; its `dicoms`.

    `masks` and `others` count what is passed over.
    """

    names: list[KeyedName] = field(default_factory=list)
    dicoms: list[KeyedName] = field(default_factory=list)
    masks: int = 0
    others: int = 0


def list_folder(path: bytes) -> Listing:
    """List a folder. Raises OSError."""
    found = Listing()
    with os.scandir(path) as entries:
        for entry in entries:
            _sort_in(found, entry)
    found.names.sort()
    found.dicoms.sort()
    return found


def kind_of(name: bytes) -> Kind:
    """What a file of this name or path is; `perhaps` is DICOM, which often has no ending, or a number."""
    lower = name.lower()
    stem, ending = os.path.splitext(lower)
    if ending in _PICTURES:
        return "mask" if stem.endswith(_MASK) else "picture"
    if lower.endswith(endings.NIFTI):
        return "mask" if stem.removesuffix(b".nii").endswith(_MASK) else "nifti"
    if ending in endings.DICOM:
        return "dicom"
    return "perhaps" if ending[1:].isdigit() or not ending else "other"


def natural_key(name: bytes) -> bytes:
    """Return a key of one path component; keys compare (as bytes) as their names do, numbers by value.

    Keys of a path's components can be joined: each ends before it can run into the next. A digit run becomes
    "0", the length of its value and the value, so that it sorts where digits do. Leading zeros come last, and
    only tell apart what is equal without them.
    """
    zeros: list[bytes] = []

    def number(match: re.Match[bytes]) -> bytes:
        digits = match.group()
        value = digits.lstrip(b"0")
        zeros.append(_length(len(digits) - len(value)))
        return _NUMBER + _length(len(value)) + value

    text = _DIGITS.sub(number, name)
    return text + b"\0" + b"".join(zeros)


def _sort_in(found: Listing, entry: os.DirEntry[bytes]) -> None:
    name = entry.name
    if name.startswith(b"."):
        found.others += 1
        return
    kind: Kind | None = kind_of(name)
    if kind in ("dicom", "perhaps"):
        # A link to a file is one of the series; a folder may be called like a file.
        if entry.is_file() and (kind == "dicom" or is_dicom(entry.path)):
            found.dicoms.append((natural_key(name), name))
            return
        kind = "other" if kind == "perhaps" else None
    # Only following a link tells what it is, and that is done when its turn has come.
    if kind in (None, "picture", "nifti") or entry.is_symlink() or entry.is_dir(follow_symlinks=False):
        found.names.append((natural_key(name), name))
    elif kind == "mask":
        found.masks += 1
    else:
        found.others += 1


def _length(value: int) -> bytes:
    full, rest = divmod(value, 255)
    return b"\xff" * full + bytes((rest,))
