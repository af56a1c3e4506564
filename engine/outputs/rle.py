"""Masks as run lengths, in the compressed form that COCO's tools write and read.

Runs go down the columns (column-major) and begin with one of zeros, which may be empty. Each length, from the
fourth on less the length two before it, is written in groups of five bits, least first: 48 plus the group,
plus 32 where more follow. pycocotools decodes the result: `mask.decode(json.loads(text))`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Box = tuple[int, int, int, int]
Numbers = npt.NDArray[np.int64]


class Crop(NamedTuple):
    """The columns of a mask of `shape` (height, width) that have something, `inside` [height,n] of 0/1.

    They begin at `left`.
    """

    shape: tuple[int, int]
    left: int
    inside: npt.NDArray[np.uint8]


_FIRST: Final = 48  # "0"
_MORE: Final = 0x20
_SIGN: Final = 0x10
_GROUP: Final = 0x1F
_BITS: Final = 5
_MOST_GROUPS: Final = 8
"""Of a length: 2^40 pixels."""
_TOGETHER: Final = 2**18
"""Characters that are taken apart together: each becomes some 50 bytes."""


def encode(mask: npt.NDArray[np.uint8], inside: Box | None = None) -> str:
    """`mask` `[h,w]` (0 is outside) as `{"size":[h,w],"counts":"..."}`; `inside` as for `run_lengths`."""
    height, width = mask.shape
    counts = _pack(run_lengths(mask, inside)).decode("ascii")
    return f'{{"size":[{height},{width}],"counts":{json.dumps(counts)}}}'


def decode(text: str) -> npt.NDArray[np.uint8]:
    """The mask `[h,w] uint8` of 0/1 that `encode` was given. Raises ValueError for any other text."""
    (crop,) = _decode_together([text])
    mask = np.zeros(crop.shape, np.uint8)
    mask[:, crop.left : crop.left + crop.inside.shape[1]] = crop.inside
    return mask


def decode_crops(texts: Iterable[str]) -> Iterator[Crop]:
    """What `decode` gives for each of `texts`, cropped to the columns that have something.

    Their lengths are taken apart together, in a fraction of the time. Raises ValueError for a text that
    `encode` did not give.
    """
    some: list[str] = []
    size = 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size >= _TOGETHER:
            yield from _decode_together(some)
            some, size = [], 0
    if some:
        yield from _decode_together(some)


def run_lengths(mask: npt.NDArray[np.uint8], inside: Box | None = None) -> Numbers:
    """The lengths of the runs of zeros and of others in turn, down the columns of `mask` `[h,w]`.

    `inside` is the box (x, y, width, height) around all others, where that is known already.
    """
    height = mask.shape[0]
    left, top, width, rows = inside or cv2.boundingRect(np.ascontiguousarray(mask))
    if rows == height:  # a run may go on in the next column
        turns = _turns(mask[:, left : left + width].T.reshape(1, -1))[1] + left * height
    else:
        column, row = _turns(mask[top : top + rows, left : left + width].T)
        turns = (column + left) * height + row + top
    ends = () if turns.size and turns[-1] == mask.size else (mask.size,)
    places = np.concatenate(((0,), turns, ends)).astype(np.int64)
    return places[1:] - places[:-1]


def _decode_together(texts: Sequence[str]) -> Iterator[Crop]:
    try:
        found = json.loads(f"[{','.join(texts)}]")
        if len(found) != len(texts):
            raise ValueError(f"run lengths of {len(found)} masks where there are {len(texts)}")
        sizes = np.array([each["size"] for each in found], np.int64).reshape(len(texts), 2)
        runs, first, behind = _unpack([each["counts"].encode("ascii") for each in found])
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError("no run lengths of a mask") from error
    height, width = sizes.T
    if sizes.min() < 1 or runs.min() < 0 or (np.add.reduceat(runs, first) != height * width).any():
        raise ValueError("run lengths of another number of pixels than the mask has")
    # Of zeros are the first run and, where there is an odd number of them, the last.
    left = runs[first] // height
    runs[first] -= left * height
    right = np.where((behind - first) & 1, runs[behind - 1] // height, 0)
    runs[behind - 1] -= right * height
    bits = (np.arange((behind - first).max()) & 1).astype(np.uint8)
    facts = zip(*(each.tolist() for each in (first, behind, height, width, left, right)), strict=True)
    for start, end, rows, columns, blank, blank_behind in facts:
        pixels = np.repeat(bits[: end - start], runs[start:end])
        inside = pixels.reshape(columns - blank - blank_behind, rows)
        # OpenCV transposes in less time than numpy, but nothing into nothing.
        turned = cv2.transpose(inside) if inside.size else inside.T
        yield Crop((rows, columns), blank, np.asarray(turned, np.uint8))


def _turns(lines: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Line and place of every change in `lines` [n,length], each between two zeros that are outside."""
    count, length = lines.shape
    between = np.zeros((count, length + 2), bool)
    np.not_equal(lines, 0, out=between[:, 1:-1])
    line, place = np.divmod(np.flatnonzero(between[:, 1:] != between[:, :-1]), length + 1)
    return line, place


def _pack(counts: Numbers) -> bytes:
    left = counts.copy()
    left[3:] -= counts[1:-2]
    return b"".join(map(_number, left.tolist()))


@lru_cache(2**16)
def _number(value: int) -> bytes:
    packed = bytearray()
    while True:
        group, value = value & _GROUP, value >> 5
        goes_on = value != -1 if group & _SIGN else value != 0
        packed.append(group + _MORE * goes_on + _FIRST)
        if not goes_on:
            return bytes(packed)


def _unpack(packed: Sequence[bytes]) -> tuple[Numbers, Numbers, Numbers]:
    """The lengths of each, one behind the other, and where each begins and ends among them."""
    groups = np.frombuffer(b"".join(packed), np.uint8).astype(np.int64) - _FIRST
    lengths = np.array([len(each) for each in packed], np.int64)
    is_last = groups & _MORE == 0
    if not lengths.all() or groups.min() < 0 or groups.max() >= 2 * _MORE:
        raise ValueError("what stands in no run length")
    if not is_last[lengths.cumsum() - 1].all():
        raise ValueError("run lengths that end early")
    ends = np.flatnonzero(is_last)  # of the numbers
    starts = np.concatenate(((0,), ends[:-1] + 1))
    sizes = ends - starts + 1
    if sizes.max() > _MOST_GROUPS:
        raise ValueError("a run length of too many digits")
    shifts = _BITS * (np.arange(groups.size) - np.repeat(starts, sizes))
    values = np.add.reduceat((groups & _GROUP) << shifts, starts)
    values -= np.where(groups[ends] & _SIGN, 1 << _BITS * sizes, 0)
    behind = np.searchsorted(ends, lengths.cumsum())
    first = np.concatenate(((0,), behind[:-1]))
    numbers = behind - first
    place = np.arange(values.size) - np.repeat(first, numbers)
    for odd in (0, 1):  # each is given less the one two before it, but for the first three
        own = (place & 1 == odd) & (place > 0)
        summed = np.where(own, values, 0).cumsum()
        values[own] = (summed - np.repeat(summed[first], numbers))[own]
    return values, first, behind
