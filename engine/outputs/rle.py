"""Masks as run lengths, in the compressed form that COCO's tools write and read.

Runs go down the columns (column-major) and begin with one of zeros, which may be empty. Each length, from the
fourth on less the length two before it, is written in groups of five bits, least first: 48 plus the group,
plus 32 where more follow. pycocotools decodes the result: `mask.decode(json.loads(text))`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

Box = tuple[int, int, int, int]

_FIRST: Final = 48  # "0"
_MORE: Final = 0x20
_SIGN: Final = 0x10
_GROUP: Final = 0x1F


def encode(mask: npt.NDArray[np.uint8], inside: Box | None = None) -> str:
    """`mask` `[h,w]` (0 is outside) as `{"size":[h,w],"counts":"..."}`; `inside` as for `run_lengths`."""
    height, width = mask.shape
    counts = _pack(run_lengths(mask, inside)).decode("ascii")
    return f'{{"size":[{height},{width}],"counts":{json.dumps(counts)}}}'


def decode(text: str) -> npt.NDArray[np.uint8]:
    """The mask `[h,w] uint8` of 0/1 that `encode` was given. Raises ValueError for any other text."""
    try:
        found = json.loads(text)
        (height, width), counts = found["size"], _unpack(found["counts"].encode("ascii"))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("no run lengths of a mask") from error
    if counts.min(initial=0) < 0 or counts.sum() != height * width:
        raise ValueError(f"run lengths of {counts.sum()} pixels for a mask of {height} x {width}")
    values = (np.arange(len(counts)) & 1).astype(np.uint8)
    return np.asarray(cv2.transpose(np.repeat(values, counts).reshape(width, height)), np.uint8)


def run_lengths(mask: npt.NDArray[np.uint8], inside: Box | None = None) -> npt.NDArray[np.int64]:
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


def _turns(lines: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Line and place of every change in `lines` [n,length], each between two zeros that are outside."""
    count, length = lines.shape
    between = np.zeros((count, length + 2), bool)
    np.not_equal(lines, 0, out=between[:, 1:-1])
    line, place = np.divmod(np.flatnonzero(between[:, 1:] != between[:, :-1]), length + 1)
    return line, place


def _pack(counts: npt.NDArray[np.int64]) -> bytes:
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


def _unpack(packed: bytes) -> npt.NDArray[np.int64]:
    counts: list[int] = []
    value = shift = 0
    for byte in packed:
        group = byte - _FIRST
        if not 0 <= group < 2 * _MORE:
            raise ValueError(f"{chr(byte)!r} stands in no run length")
        value |= (group & _GROUP) << shift
        shift += 5
        if group & _MORE:
            continue
        if group & _SIGN:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("run lengths that end early")
    return np.array(counts, np.int64)
