"""True masks: which belongs to a slice, and how the mask that was found compares with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from engine.errors import SliceError, UsageError
from engine.page.pixels import read_mask
from engine.page.results import Results, Slice
from engine.page.threads import in_threads
from engine.text import shown
from engine.trial import TRUTH_ENDINGS, read_true_pixels

_SUFFIX: Final = b"_mask"


@dataclass(frozen=True, slots=True)
class Judged:
    """One slice held against its true mask, a file at `path`.

    `overlap` are pixels at the source's size: of both masks, of the found one only, of the true one only.
    It is None where the found mask was not kept.
    """

    path: bytes
    tumour: bool
    found: bool
    overlap: tuple[int, int, int] | None

    @property
    def dice(self) -> float | None:
        """1 where both masks are empty."""
        return None if self.overlap is None else dice(*self.overlap)

    @property
    def missed(self) -> bool:
        """A tumour without a mask."""
        return self.tumour and not self.found

    @property
    def false_alarm(self) -> bool:
        """A mask without a tumour."""
        return self.found and not self.tumour


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of each slice of a run, None where that is not known."""

    judged: Sequence[Judged | None]
    notes: tuple[str, ...]


def dice(tp: int, fp: int, fn: int) -> float:
    """Twice what two masks share, by what both have together; 1 where both are empty."""
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0


def judge(results: Results, data: Path, advance: Callable[[], None]) -> Truth:
    """Hold every slice against its X_mask.tif (.tiff, .png) below `data`; `advance` hears of each.

    A slice's mask has its path, or where no path fits those of its volume's folder and file: a tree may lie
    elsewhere than when it was scored. A slice that is quarantined counts as one without a mask. Raises
    UsageError where no slice has a true mask, and where one has the size of another image.
    """
    masks, how = _match(results.slices, data)
    unreadable: list[str] = []
    judged: list[Judged | None] = []
    for each in in_threads(partial(_judge, results.folder), list(zip(results.slices, masks, strict=True))):
        if isinstance(each, str):
            unreadable.append(each)
        judged.append(None if isinstance(each, str) else each)
        advance()
    return Truth(judged, (*_notes(masks, unreadable), *how))


def _judge(folder: Path, pair: tuple[Slice, bytes | None]) -> Judged | str | None:
    """A message where the true mask cannot be read."""
    each, path = pair
    if path is None:
        return None
    try:
        true = read_true_pixels(path)
    except SliceError as error:
        return f"{shown(path)}: {error.failure.message}"
    tumour = bool(true.any())
    found = read_mask(folder, each) if each.has_mask else np.zeros_like(true)
    if found is None:
        return Judged(path, tumour, each.has_mask, None)
    if found.shape != true.shape:
        raise UsageError(
            f"{shown(path)} is {true.shape[1]}x{true.shape[0]}, but the mask of {each.image_path} "
            f"{found.shape[1]}x{found.shape[0]}: --truth is of other images"
        )
    tp = int(np.count_nonzero(true & found))
    overlap = tp, int(np.count_nonzero(found)) - tp, int(np.count_nonzero(true)) - tp
    return Judged(path, tumour, each.has_mask, overlap)


def _match(slices: Sequence[Slice], data: Path) -> tuple[list[bytes | None], tuple[str, ...]]:
    """The true mask of each slice, and a note on how they were found."""
    masks = _masks_below(data)
    by_path = {_stem(shown(path), mask=True): path for path in masks}
    paths = [None if each.index else by_path.get(_stem(each.image_path)) for each in slices]
    if any(paths):
        return paths, ()
    by_name = _by_name(masks)
    names = ["" if each.index else _name(_stem(each.image_path)) for each in slices]
    if not any(name in by_name for name in names):
        raise UsageError(
            f"--truth {shown(data)} has no mask of any slice: results have {slices[0].image_path}, and for "
            f"that it would need {names[0]}_mask.tif (.tiff, .png)"
        )
    twice = next((name for name in names if len(by_name.get(name, ())) > 1), None)
    if twice is not None:
        one, other = by_name[twice][:2]
        raise UsageError(
            f"--truth {shown(data)} has {twice} twice ({shown(one)}, {shown(other)}): give one tree"
        )
    found = [by_name[name][0] if name in by_name else None for name in names]
    return found, ("True masks were found by folder and file name, as no path fits.",)


def _masks_below(data: Path) -> list[bytes]:
    """Paths of X_mask.* in a fixed order; of Kaggle's archive, which has its set twice, the one above."""
    if not data.is_dir():
        raise UsageError(f"--truth {shown(data)}: no such folder: give the one with the X_mask.tif files")
    top = data / "kaggle_3m" if (data / "kaggle_3m").is_dir() else data
    found = []
    for folder, folders, names in os.walk(os.fsencode(top)):
        folders.sort()
        for name in sorted(names):
            stem, ending = os.path.splitext(name)  # noqa: PTH122 - pathlib refuses bytes
            if stem.endswith(_SUFFIX) and ending.lower() in TRUTH_ENDINGS:
                found.append(os.path.join(folder, name))  # noqa: PTH118
    if not found:
        raise UsageError(
            f"--truth {shown(data)} holds no true masks: they are named X_mask.tif, .tiff or .png"
        )
    return found


def _by_name(masks: Sequence[bytes]) -> Mapping[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for path in masks:
        found.setdefault(_name(_stem(shown(path), mask=True)), []).append(path)
    return found


def _stem(path: str, *, mask: bool = False) -> str:
    """A path without its ending, and a mask's without _mask: what a slice and its mask have in common."""
    stem = os.path.splitext(path.removeprefix("./"))[0]  # noqa: PTH122
    return stem.removesuffix(_SUFFIX.decode()) if mask else stem


def _name(stem: str) -> str:
    return "/".join(stem.split("/")[-2:])


def _notes(masks: Sequence[bytes | None], unreadable: Sequence[str]) -> Sequence[str]:
    notes = []
    if without := masks.count(None):
        notes.append(
            f"{without:,} of {len(masks):,} slices have no true mask and are left out of its figures."
        )
    if unreadable:
        notes.append(f"{len(unreadable):,} true masks cannot be read, the first is {unreadable[0]}")
    return notes
