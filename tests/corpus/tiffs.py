"""A TIFF writer for tests: every layout of uncompressed, deflated and PackBits samples, and any lie.

`write` makes a sound file of an array and a layout; `assemble` puts together whatever entries it is given.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

BYTE, ASCII, SHORT, LONG, RATIONAL, SBYTE, UNDEFINED, SSHORT, SLONG = 1, 2, 3, 4, 5, 6, 7, 8, 9
FLOAT, DOUBLE, IFD, LONG8, SLONG8 = 11, 12, 13, 16, 17
CODES = {
    **{BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", RATIONAL: "Q", SBYTE: "b", UNDEFINED: "B", SSHORT: "h"},
    **{SLONG: "i", FLOAT: "f", DOUBLE: "d", IFD: "I", LONG8: "Q", SLONG8: "q"},
}

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 273, 274, 277, 278, 279
PLANAR, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = (
    *(284, 317, 320, 322, 323, 324, 325),
)
SUB_IFDS, EXTRA, FORMAT, JPEG_TABLES, ICC, EXIF = 330, 338, 339, 347, 34_675, 34_665

STORED, LZW, JPEG, ADOBE_DEFLATE, OLD_DEFLATE, PACKBITS = 1, 5, 7, 8, 32_946, 32_773
_FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}


@dataclass(frozen=True, slots=True)
class Layout:
    """How samples lie in the file. `tile` is (height, width), multiples of 16; `alpha` extra samples."""

    order: str = "<"
    big: bool = False
    compression: int = STORED
    predictor: int = 1
    planar: bool = False
    tile: tuple[int, int] | None = None
    rows_per_strip: int | None = None
    photometric: int | None = None
    alpha: int = 0
    directory_first: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag. `count` lies where it is given; a `bytes` value is written as it is."""

    tag: int
    type: int
    values: tuple[int, ...] | bytes
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A directory: `offsets_tag` gets the places of `pieces`; `next` lies about the next directory."""

    entries: list[Entry]
    pieces: list[bytes] = field(default_factory=list)
    offsets_tag: int = STRIP_OFFSETS
    next: int | None = None


def write(image: npt.NDArray[Any], layout: Layout, *, more: Sequence[Entry] = ()) -> bytes:
    """A file of one page that holds `image` [h,w,samples]; entries of `more` replace those it would have."""
    return assemble([page(image, layout, more=more)], layout.order, layout.big, layout.directory_first)


def page(image: npt.NDArray[Any], layout: Layout, *, more: Sequence[Entry] = ()) -> Page:
    """The page of `image` [h,w,samples] in this layout."""
    height, width, samples = image.shape
    pieces = [_packed(piece, layout) for piece in _pieces(image, layout)]
    colour = 1 if samples - layout.alpha < 3 else 2
    values: dict[int, tuple[int, ...]] = {
        WIDTH: (width,),
        HEIGHT: (height,),
        BITS: (image.dtype.itemsize * 8,) * samples,
        COMPRESSION: (layout.compression,),
        PHOTOMETRIC: (colour if layout.photometric is None else layout.photometric,),
        SAMPLES: (samples,),
        FORMAT: (_FORMATS[image.dtype.kind],) * samples,
    }
    if layout.planar:
        values[PLANAR] = (2,)
    if layout.predictor != 1:
        values[PREDICTOR] = (layout.predictor,)
    if layout.alpha:
        values[EXTRA] = (2,) * layout.alpha
    counts = tuple(map(len, pieces))
    if layout.tile:
        values |= {TILE_HEIGHT: (layout.tile[0],), TILE_WIDTH: (layout.tile[1],), TILE_COUNTS: counts}
    else:
        values |= {ROWS_PER_STRIP: (layout.rows_per_strip or height,), STRIP_COUNTS: counts}
    longs = (STRIP_COUNTS, TILE_COUNTS)
    entries = {tag: Entry(tag, LONG if tag in longs else SHORT, each) for tag, each in values.items()}
    entries |= {entry.tag: entry for entry in more}
    return Page(list(entries.values()), pieces, TILE_OFFSETS if layout.tile else STRIP_OFFSETS)


def assemble(
    pages: Sequence[Page], order: str = "<", big: bool = False, directory_first: bool = False
) -> bytes:
    """Directories and their pieces as one file, directories sorted by tag as the format wants it."""
    head = struct.pack(order + "2sH", b"II" if order == "<" else b"MM", 43 if big else 42)
    head += struct.pack(order + "HH", 8, 0) if big else b""
    file = bytearray(head + bytes(8 if big else 4))
    link = len(head)
    for each in pages:
        if directory_first:
            # Pieces lie behind the directory, whose size does not hang on where they lie.
            at = _even(file)
            size = len(_directory(each, [0] * len(each.pieces), at, order, big))
            directory = _directory(each, _places(each, at + size), at, order, big)
            file += directory + b"".join(map(_padded, each.pieces))
        else:
            places = _places(each, _even(file))
            file += b"".join(map(_padded, each.pieces))
            at = _even(file)
            directory = _directory(each, places, at, order, big)
            file += directory
        struct.pack_into(order + ("Q" if big else "I"), file, link, at)
        link = at + _table_bytes(each, big) - (8 if big else 4)
    return bytes(file)


def _directory(each: Page, places: list[int], at: int, order: str, big: bool) -> bytes:
    """The table, and behind it the values that are too long for it."""
    entries = list(each.entries)
    if each.pieces:
        given = {entry.tag for entry in entries}
        if each.offsets_tag not in given:
            entries.append(Entry(each.offsets_tag, LONG8 if big else LONG, tuple(places)))
    entries.sort(key=lambda entry: entry.tag)
    inline = 8 if big else 4
    table = struct.pack(order + ("Q" if big else "H"), len(entries))
    behind = b""
    behind_at = at + _table_bytes(each, big)
    for entry in entries:
        if isinstance(entry.values, bytes):
            value, count = entry.values, len(entry.values)
        else:
            count = len(entry.values)
            value = struct.pack(f"{order}{count}{CODES[entry.type]}", *entry.values)
        told = count if entry.count is None else entry.count
        table += struct.pack(order + "HH" + ("Q" if big else "I"), entry.tag, entry.type, told)
        if len(value) > inline:
            table += struct.pack(order + ("Q" if big else "I"), behind_at + len(behind))
            behind += _padded(value)
        else:
            table += value.ljust(inline, b"\0")
    table += struct.pack(order + ("Q" if big else "I"), each.next or 0)
    return table + behind


def _table_bytes(each: Page, big: bool) -> int:
    count = len(each.entries)
    if each.pieces and each.offsets_tag not in {entry.tag for entry in each.entries}:
        count += 1
    return (8 if big else 2) + count * (20 if big else 12) + (8 if big else 4)


def _pieces(image: npt.NDArray[Any], layout: Layout) -> list[npt.NDArray[Any]]:
    """Strips or tiles [rows,columns,samples], plane by plane where it is planar."""
    height, width, samples = image.shape
    planes = [image[:, :, index : index + 1] for index in range(samples)] if layout.planar else [image]
    if layout.tile is None:
        rows = layout.rows_per_strip or height
        return [plane[top : top + rows] for plane in planes for top in range(0, height, rows)]
    tall, wide = layout.tile
    padding = ((0, -height % tall), (0, -width % wide), (0, 0))
    padded = [np.pad(plane, padding, mode="edge") for plane in planes]
    return [
        plane[top : top + tall, left : left + wide]
        for plane in padded
        for top in range(0, height, tall)
        for left in range(0, width, wide)
    ]


def _packed(piece: npt.NDArray[Any], layout: Layout) -> bytes:
    if layout.predictor == 2:
        piece = np.diff(piece, axis=1, prepend=piece.dtype.type(0))
    stored = piece.astype(piece.dtype.newbyteorder(layout.order))
    data = stored.tobytes()
    if layout.compression in (ADOBE_DEFLATE, OLD_DEFLATE):
        return zlib.compress(data, 1)
    if layout.compression == PACKBITS:
        rows = stored.reshape(len(stored), -1)
        return b"".join(packbits(row.tobytes()) for row in rows)
    return data


def packbits(data: bytes) -> bytes:
    """Literal runs only: larger than the data, and sound."""
    runs = [data[at : at + 128] for at in range(0, len(data), 128)]
    return b"".join(bytes((len(run) - 1,)) + run for run in runs)


def without(each: Page, *tags: int) -> Page:
    """The page without some of its entries."""
    return replace(each, entries=[entry for entry in each.entries if entry.tag not in tags])


def _places(each: Page, at: int) -> list[int]:
    places = []
    for piece in each.pieces:
        places.append(at)
        at += len(piece) + len(piece) % 2
    return places


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


def _even(file: bytearray) -> int:
    file += b"\0" * (len(file) % 2)
    return len(file)
