"""Connected components of a volume's mask, met slice by slice, and which of them are kept.

Voxels that share a face, an edge or a corner belong together (26 neighbours). Two slices are held at a time,
so a volume may be any number of slices long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Final, Self

import cv2
import numpy as np
import numpy.typing as npt

from engine.errors import UsageError
from engine.outputs.rle import Crop

Mask = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]

_MINIMUM: Final = re.compile(r"(\d+(?:\.\d+)?)(ml)?")
_SHIFTS: Final = tuple(product((0, 1, 2), repeat=2))
_AROUND: Final = np.ones((3, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Rule:
    """Which components of a volume are kept: the largest, or those of at least so many voxels or millilitres.

    `text` is the rule as typed, the numbers as short as they can be.
    """

    text: str = "all"
    voxels: int = 0
    ml: float = 0.0
    largest: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """The rule of `--components`: all, largest, 50 (voxels) or 0.5ml. UsageError for anything else."""
        word = text.strip().lower()
        if word in ("all", "largest"):
            return cls(word, largest=word == "largest")
        found = _MINIMUM.fullmatch(word)
        amount = float(found[1]) if found else 0.0
        if found and found[2] and amount > 0:
            return cls(f"{amount:g}ml", ml=amount)
        if found and amount >= 1 and amount == int(amount):
            return cls(f"{int(amount)}", voxels=int(amount))
        raise UsageError(
            f"--components {text}: give all, largest, a number of voxels, or millilitres as 0.5ml"
        )

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever dropped."""
        return not (self.largest or self.voxels or self.ml)

    def kept(self, voxels: npt.NDArray[np.int64], voxel_ml: float | None) -> npt.NDArray[np.bool_]:
        """Which of components with so many `voxels` [n] are kept; of the largest ones the first.

        Where the size of a voxel is not known, a rule in millilitres keeps all.
        """
        if self.largest:
            return np.asarray(np.arange(len(voxels)) == (np.argmax(voxels) if len(voxels) else 0), np.bool_)
        least = float(self.voxels)
        if self.ml and voxel_ml is not None:
            least = self.ml / voxel_ml
        return np.asarray(voxels >= least, np.bool_)


KEEP_ALL: Final = Rule()


@dataclass(frozen=True, slots=True)
class Components:
    """The components of a volume, in the order in which they were met.

    `voxels` int64 [n] is their sizes. `of_label` has the component of every label that a slice has by itself,
    and `firsts[k]` where those of slice k begin.
    """

    voxels: npt.NDArray[np.int64]
    of_label: npt.NDArray[np.int64]
    firsts: list[int]

    def untouched(self, number: int, kept: npt.NDArray[np.bool_]) -> bool:
        """Whether slice `number` has all of its mask in the `kept` [n] of the components."""
        return bool(kept[self._of_slice(number)].all())

    def keep(self, number: int, mask: Mask, kept: npt.NDArray[np.bool_]) -> Mask:
        """Slice `number`, whose whole mask is `mask` [h,w], with the `kept` [n] of the components alone."""
        stays = np.concatenate(((False,), kept[self._of_slice(number)]))
        found, _ = _look_at(mask)
        height, width = found.labels.shape
        left = np.zeros_like(mask)
        left[found.top : found.top + height, found.left : found.left + width] = stays[found.labels]
        return left

    def _of_slice(self, number: int) -> npt.NDArray[np.int64]:
        """The components of slice `number`, by its labels from 1 on."""
        return self.of_label[self.firsts[number] : self.firsts[number + 1]]


@dataclass(frozen=True, slots=True)
class _Slice:
    """What a slice [h,w] has inside its box, whose first pixel is at `left` and `top`: `count` components."""

    shape: tuple[int, ...]
    left: int
    top: int
    labels: Labels
    count: int


_NOTHING: Final = _Slice((), 0, 0, np.zeros((0, 0), np.int32), 0)


def find_components(masks: Iterable[Mask | Crop | None]) -> Components:
    """The components of a volume whose slices have these masks: uint8 [h,w] with 0 outside, None for none.

    A mask may be cropped to the columns that have something.

    Slices that lie one behind the other in `masks` are neighbours, unless they differ in size.
    """
    parents: list[int] = []
    voxels: list[int] = []
    firsts: list[int] = []  # the number of each slice's first label
    last = _NOTHING
    for mask in masks:
        this, sizes = (_NOTHING, []) if mask is None else _look_at(mask)
        first = len(parents)
        parents += range(first, first + this.count)
        voxels += sizes
        if this.count and last.count and this.shape == last.shape:
            for one, other in _touching(last, this):
                _join(parents, firsts[-1] + one - 1, first + other - 1)
        firsts.append(first)
        last = this
    roots = np.array([_root(parents, place) for place in range(len(parents))], np.int64)
    unique, component = np.unique(roots, return_inverse=True)
    total = np.bincount(component, np.array(voxels, np.float64), len(unique)).astype(np.int64)
    return Components(total, component, [*firsts, len(parents)])


def _look_at(mask: Mask | Crop) -> tuple[_Slice, list[int]]:
    """A slice's components, and the pixels of each."""
    shape, start, columns = mask if isinstance(mask, Crop) else (mask.shape, 0, mask)
    left, top, width, height = cv2.boundingRect(columns) if columns.size else (0, 0, 0, 0)
    inside = columns[top : top + height, left : left + width]
    if inside.size == 0:
        return _NOTHING, []
    # With OpenCV's own statistics of them it takes three times as long.
    count, labels = cv2.connectedComponents(inside, connectivity=8)
    sizes = [cv2.countNonZero(inside)] if count == 2 else np.bincount(labels.ravel())[1:].tolist()
    return _Slice(shape, start + left, top, np.asarray(labels, np.int32), count - 1), sizes


def _touching(one: _Slice, other: _Slice) -> list[tuple[int, int]]:
    """Pairs of labels of two neighbouring slices whose voxels touch."""
    if one.count == other.count == 1 and _overlap(one, other):  # what a lesion mostly does
        return [(1, 1)]
    height, width = other.labels.shape
    # What lies of `one` around the box of `other`, a pixel more on each side: its nine shifts are all there.
    around = np.zeros((height + 2, width + 2), np.int64)
    down, right = one.top - (other.top - 1), one.left - (other.left - 1)
    rows, columns = (
        slice(max(0, shift), min(size, shift + length))
        for shift, size, length in zip((down, right), around.shape, one.labels.shape, strict=True)
    )
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return []
    around[rows, columns] = one.labels[
        rows.start - down : rows.stop - down, columns.start - right : columns.stop - right
    ]
    here = other.labels.astype(np.int64)
    if one.count == other.count == 1:
        near = cv2.dilate((around != 0).astype(np.uint8), _AROUND)[1:-1, 1:-1]
        return [(1, 1)] if (near & (here != 0)).any() else []
    pairs: set[int] = set()
    for row, column in _SHIFTS:
        there = around[row : row + height, column : column + width]
        pairs.update(np.unique((there * (other.count + 1) + here)[(there != 0) & (here != 0)]).tolist())
    return [divmod(pair, other.count + 1) for pair in sorted(pairs)]


def _overlap(one: _Slice, other: _Slice) -> bool:
    """Whether a pixel of one lies upon a pixel of the other."""
    top, left = max(one.top, other.top), max(one.left, other.left)
    below, above = (each.labels[top - each.top :, left - each.left :] for each in (one, other))
    height, width = min(len(below), len(above)), min(below.shape[1], above.shape[1])
    return bool((below[:height, :width] & above[:height, :width]).any())


def _root(parents: list[int], place: int) -> int:
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = parents[place]
    return place


def _join(parents: list[int], one: int, other: int) -> None:
    """Give both trees the earlier root, so that components keep the order in which they were met."""
    first, second = sorted((_root(parents, one), _root(parents, other)))
    parents[second] = first
