"""Finding the slices of a run: a stream of files in a fixed order, whatever the number of files.

One folder is listed and sorted at a time, so memory is bounded by the largest folder. Paths stay bytes: a
name need not be valid text.
"""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH112, PTH114, PTH116, PTH119, PTH120, PTH122

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import Failure, UsageError
from engine.sources.files import NOT_A_FILE, io_failure
from engine.text import FORMULA_STARTS, shown

ENDINGS = (b".tif", b".tiff", b".png", b".jpg", b".jpeg", b".webp")

# Folders below masks/ that stand for what a listed path says; a folder of such a name has an underscore more.
_UP, _ROOT, _HERE = b"_up", b"_root", b"_here"
_STANDS_FOR = re.compile(rb"_+(up|root|here)")
_DIGITS = re.compile(rb"[0-9]+")
_NUMBER = b"0"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to score.

    `path` is what open() takes; `image_path` the INPUT as typed plus the path below it, as text that is safe
    in a table; `volume` its folder; `mask_stem` where its masks go below masks/, without the ending; `order`
    sorts (as bytes) in the order of discovery and is unique within a run; `size` is in bytes.
    """

    path: bytes
    image_path: str
    volume: str
    mask_stem: bytes
    order: bytes
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A folder or a file that could not be looked at, or is not what its name says."""

    image_path: str
    order: bytes
    failure: Failure


@dataclass(frozen=True, slots=True)
class _Entry:
    """A path on its way: as it is opened, as it is shown, where its masks go, where it sorts."""

    path: bytes
    shown: bytes
    stem: bytes
    order: bytes
    named: bool

    def below(self, keyed_name: tuple[bytes, bytes]) -> _Entry:
        key, name = keyed_name
        join = os.path.join
        return _Entry(
            join(self.path, name),
            join(self.shown, name),
            join(self.stem, name),
            self.order + key,
            named=False,
        )


class Discovery:
    """Iterates over the slices below `inputs`, or below the paths in `files_from`, depth first.

    Files and folders of one folder are sorted together, numbers in names by value. In folders, files with
    another ending than .tif .tiff .png .jpg .jpeg .webp and everything hidden (a leading dot) are skipped and
    counted in `skipped_other`; files named *_mask.* are skipped and counted in `skipped_masks`. A file that
    is named directly is always taken. Links are followed; a loop of them is reported once, as an Unlisted.
    A file that is reached through two INPUTs is scored twice, with a row for each name.

    Masks of one INPUT folder mirror what is below it; of several, each INPUT has its own folder, named after
    it and numbered where names repeat. Listed paths are mirrored whole, without a leading / and with ..
    written _up; where a list mixes absolute and relative paths, those of the kind that came second go below
    _root or _here, and a folder that has such a name itself gets an underscore more: two files never share a
    mask.

    `out` is where results will be written, None where nothing is.

    Raises UsageError: nothing to do, a missing INPUT, one given twice, the output inside an INPUT or around
    it. The same is raised while iterating where a listed path or a link leads into the output.
    """

    def __init__(self, inputs: Sequence[str], files_from: Iterable[bytes] | None, out: Path | None) -> None:
        if not inputs and files_from is None:
            raise UsageError("nothing to score: name a folder, files, or --files-from LIST")
        if inputs and files_from is not None:
            raise UsageError("both INPUT and --files-from are given: give one of them")
        self._out = None if out is None else os.path.realpath(os.fsencode(out))
        self._files_from = files_from
        self._inputs = [_typed(text) for text in inputs]
        self._refuse_bad_inputs()
        self.skipped_masks = 0
        self.skipped_other = 0

    def __iter__(self) -> Iterator[SourceFile | Unlisted]:
        self.skipped_masks = 0
        self.skipped_other = 0
        for entry in self._input_entries() if self._files_from is None else self._list_entries():
            yield from self._walk(entry)

    def _refuse_bad_inputs(self) -> None:
        seen: set[bytes] = set()
        for typed in self._inputs:
            shown = _text(typed)
            if typed in seen:
                raise UsageError(f"INPUT {shown!r} is given twice: give it once")
            seen.add(typed)
            try:
                os.stat(typed)
            except FileNotFoundError:
                raise UsageError(f"INPUT {shown!r} does not exist: check its spelling") from None
            except OSError as error:
                raise UsageError(f"INPUT {shown!r} cannot be read: {error.strerror}") from None
            except ValueError:
                raise UsageError(f"INPUT {shown!r} is not a path") from None
            self._refuse_overlap(typed)

    def _refuse_overlap(self, path: bytes) -> None:
        if self._out is None:
            return
        place, out = os.path.realpath(path), self._out
        if _contains(place, out):
            where = "is" if place == out else "lies inside"
            raise UsageError(
                f"the output {_text(out)!r} {where} the input {_text(path)!r}: choose another --out"
            )
        if _contains(out, place):
            raise UsageError(
                f"the input {_text(path)!r} lies inside the output {_text(out)!r}: choose another --out"
            )

    def _input_entries(self) -> Iterator[_Entry]:
        alone = len(self._inputs) == 1
        used: set[bytes] = set()
        for position, typed in enumerate(self._inputs):
            name = os.path.basename(typed)
            if name in (b"", b".", b".."):
                name = os.path.basename(os.path.realpath(typed)) or b"root"
            stem = b"" if alone and os.path.isdir(typed) else _unused(name, used)
            yield _Entry(typed, typed, stem, position.to_bytes(8, "big"), named=True)

    def _list_entries(self) -> Iterator[_Entry]:
        first_is_absolute: bool | None = None
        for position, line in enumerate(self._files_from or ()):
            listed = line.rstrip(b"/") or line[:1]
            absolute = listed.startswith(b"/")
            if first_is_absolute is None:
                first_is_absolute = absolute
            parts = [_mirrored(part) for part in listed.split(b"/") if part not in (b"", b".")]
            if absolute != first_is_absolute:
                parts.insert(0, _ROOT if absolute else _HERE)
            yield _Entry(listed, listed, b"/".join(parts), position.to_bytes(8, "big"), named=True)

    def _walk(self, root: _Entry) -> Iterator[SourceFile | Unlisted]:
        # One level a folder that is open: what is left of it, and its identity.
        waiting: list[Iterator[_Entry]] = [iter((root,))]
        identities: list[tuple[int, int]] = []
        while waiting:
            entry = next(waiting[-1], None)
            if entry is None:
                waiting.pop()
                if identities:
                    identities.pop()
                continue
            try:
                status = os.stat(entry.path)
                is_folder = stat.S_ISDIR(status.st_mode)
                if entry.named or (is_folder and os.path.islink(entry.path)):
                    self._refuse_overlap(entry.path)
                if not is_folder:
                    yield from self._file(entry, status)
                    continue
                identity = (status.st_dev, status.st_ino)
                if identity in identities:
                    yield _unlisted(
                        entry, Failure("discover", "link_loop", "a link to a folder that holds it")
                    )
                    continue
                names = self._list(entry.path)
            except OSError as error:
                yield _unlisted(entry, io_failure("discover", error))
                continue
            except ValueError:
                yield _unlisted(entry, Failure("discover", "bad_name", "not a path: it holds a zero byte"))
                continue
            waiting.append(map(entry.below, names))
            identities.append(identity)

    def _list(self, folder: bytes) -> list[tuple[bytes, bytes]]:
        with os.scandir(folder) as entries:
            return sorted((natural_key(each.name), each.name) for each in entries if self._is_wanted(each))

    def _is_wanted(self, entry: os.DirEntry[bytes]) -> bool:
        if entry.name.startswith(b"."):
            self.skipped_other += 1
            return False
        # Only following a link tells what it is, and that is done when its turn has come.
        return entry.is_symlink() or entry.is_dir(follow_symlinks=False) or self._is_slice(entry.name)

    def _is_slice(self, name: bytes) -> bool:
        stem, ending = os.path.splitext(name.lower())
        if ending not in ENDINGS:
            self.skipped_other += 1
            return False
        if stem.endswith(b"_mask"):
            self.skipped_masks += 1
            return False
        return True

    def _file(self, entry: _Entry, status: os.stat_result) -> Iterator[SourceFile | Unlisted]:
        # Names were judged when the folder was listed, those of links could not be.
        if not entry.named and not self._is_slice(os.path.basename(entry.path)):
            return
        if not stat.S_ISREG(status.st_mode):
            yield _unlisted(entry, Failure("discover", "not_a_file", NOT_A_FILE))
            return
        image_path = _text(entry.shown)
        folder = os.path.dirname(image_path) or "."
        yield SourceFile(
            path=entry.path,
            image_path=image_path,
            volume=folder,
            mask_stem=entry.stem,
            order=entry.order,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
        )


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


def _length(value: int) -> bytes:
    full, rest = divmod(value, 255)
    return b"\xff" * full + bytes((rest,))


def _typed(text: str) -> bytes:
    raw = os.fsencode(text)
    return raw.rstrip(b"/") or raw[:1]


def _text(path: bytes) -> str:
    """Return `path` as text that opens where it can, and that no spreadsheet takes for a formula."""
    text = shown(path)
    return f"./{text}" if text.startswith(FORMULA_STARTS) else text


def _mirrored(part: bytes) -> bytes:
    if part == b"..":
        return _UP
    return b"_" + part if _STANDS_FOR.fullmatch(part) else part


def _contains(folder: bytes, path: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def _unused(name: bytes, used: set[bytes]) -> bytes:
    candidate, number = name, 1
    while candidate in used:
        number += 1
        candidate = b"%s_%d" % (name, number)
    used.add(candidate)
    return candidate


def _unlisted(entry: _Entry, failure: Failure) -> Unlisted:
    return Unlisted(_text(entry.shown), entry.order, failure)
