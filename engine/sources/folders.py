"""A folder's listing: what of it is to be scored, told by names, and where they say nothing by a look."""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH122

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from engine.sources import endings
from engine.sources.keyed_names import KeyedName, KeyedNames
from engine.sources.series import is_dicom
from engine.sources.shards import FolderPart
from engine.sources.statuses import Statuses

Kind = Literal["picture", "nifti", "dicom", "perhaps", "mask", "other"]

_PICTURES: Final = frozenset(endings.PICTURES)
_MASK: Final = b"_mask"
_USUAL: Final = frozenset(ending.removeprefix(b".") for ending in endings.PICTURES)
_NO_STEM: Final = frozenset((b"", b".", b"/"))
"""What stands before an ending that may be none: that of a name of dots, or a hidden one."""
_DIGITS: Final = re.compile(rb"[0-9]+")
_ONE_NUMBER: Final = re.compile(rb"([^0-9]*)(?=[0-9])(0*)([0-9]*)([^0-9]*)")
_NUMBER: Final = b"0"
_LENGTHS: Final = tuple(bytes((value,)) for value in range(255))
"""Of numbers with fewer digits than that, as `_length` writes them."""


class Name(Protocol):
    """A name in a folder, as `os.DirEntry` tells it."""

    @property
    def name(self) -> bytes:
        """Without its folder."""

    @property
    def path(self) -> bytes:
        """With it."""

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a file, or leads to one."""

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a folder, or leads to one."""

    def is_symlink(self) -> bool:
        """Whether it is a link."""


@dataclass(slots=True)
class Listing:
    """What a folder holds, sorted: `names` of folders, pictures, NIfTI files and links; its `dicoms`.

    `odd` are those of `names` that only a look by itself tells what they are and whether they are wanted; the
    others are pictures if they are files. `masks` and `others` count what is passed over. `statuses` are the
    names', where they were looked at already.
    """

    names: Sequence[KeyedName] = field(default_factory=KeyedNames)
    odd: set[bytes] = field(default_factory=set)
    dicoms: KeyedNames = field(default_factory=KeyedNames)
    masks: int = 0
    others: int = 0
    statuses: Statuses | None = None


class Far(Protocol):
    """What object stores tell of their addresses, as the calls of the same names do of paths."""

    def stat(self, path: bytes) -> os.stat_result:
        """Raises OSError."""

    def list_folder(self, path: bytes, part: FolderPart | None) -> Listing:
        """Raises OSError."""

    def is_dicom(self, path: bytes) -> bool:
        """Whether an object begins as DICOM files do."""

    def start(self, path: bytes, count: int) -> bytes:
        """The first bytes of a file, at most `count`. Raises OSError."""


def list_folder(path: bytes, part: FolderPart | None = None) -> Listing:
    """List a folder, or `part` of its files. Raises OSError."""
    with os.scandir(path) as entries:
        return sort_names(entries, part, is_dicom)


def sort_names(
    entries: Iterable[Name], part: FolderPart | None, looks_like_dicom: Callable[[bytes], bool]
) -> Listing:
    """What a folder holds, or `part` of it, of what it was listed as."""
    names = KeyedNames()
    found = Listing(names)
    for entry in entries:
        name = entry.name
        if part is None and is_picture(name):  # what most are
            names.add(natural_key(name), name)
        else:
            _sort_in(found, names, entry, part, looks_like_dicom)
    names.sort()
    found.dicoms.sort()
    return found


def is_picture(name: bytes) -> bool:
    """Whether a file of this name in a folder is a slice by itself."""
    return kind_of(name) == "picture" and not name.startswith(b".")


def kind_of(name: bytes) -> Kind:
    """What a file of this name or path is; `perhaps` is DICOM, which often has no ending, or a number."""
    stem, _, ending = name.rpartition(b".")
    if ending.lower() in _USUAL and stem[-1:] not in _NO_STEM:  # what most are
        return "mask" if stem[-len(_MASK) :].lower() == _MASK else "picture"
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
    alone = _ONE_NUMBER.fullmatch(name)
    if alone is not None and len(name) < len(_LENGTHS):  # what most have
        head, zeros, value, tail = alone.groups()
        return head + _NUMBER + _LENGTHS[len(value)] + value + tail + b"\0" + _LENGTHS[len(zeros)]
    counts: list[bytes] = []

    def number(match: re.Match[bytes]) -> bytes:
        digits = match.group()
        value = digits.lstrip(b"0")
        counts.append(_length(len(digits) - len(value)))
        return _NUMBER + _length(len(value)) + value

    text = _DIGITS.sub(number, name)
    return text + b"\0" + b"".join(counts)


def _sort_in(
    found: Listing,
    names: KeyedNames,
    entry: Name,
    part: FolderPart | None,
    looks_like_dicom: Callable[[bytes], bool],
) -> None:
    name = entry.name
    if name.startswith(b"."):
        found.others += part is None or part.has(name, "other")
        return
    kind: Kind | None = kind_of(name)
    own = part is None or part.has(name, kind_of(name))
    if part is not None and kind not in ("mask", "other") and not entry.is_dir(follow_symlinks=False):
        part.see(name)
    if kind in ("dicom", "perhaps") and (part is None or part.looks):
        # A link to a file is one of the series; a folder may be called like a file.
        if _is_file(entry) and (kind == "dicom" or looks_like_dicom(entry.path)):
            found.dicoms.add(natural_key(name), name)
            return
        kind = "other" if kind == "perhaps" else None
    is_picture = kind == "picture"
    if not own and entry.is_file(follow_symlinks=False):
        return
    # Only following a link tells what it is, and that is done when its turn has come.
    if is_picture or kind in (None, "nifti") or entry.is_symlink() or entry.is_dir(follow_symlinks=False):
        names.add(natural_key(name), name)
        if not own or not is_picture:
            found.odd.add(name)
    elif kind == "mask":
        found.masks += 1
    else:
        found.others += 1


def _is_file(entry: Name) -> bool:
    """Whether it is a file, or leads to one; of a link that leads in a circle another look tells."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _length(value: int) -> bytes:
    full, rest = divmod(value, 255)
    return b"\xff" * full + bytes((rest,))
