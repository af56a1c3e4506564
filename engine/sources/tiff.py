"""TIFF: the format of the real data, so the common layouts are read here, the rest by OpenCV.

Reading uncompressed and deflated strips and tiles in numpy is several times faster than OpenCV's decoder, and
exact where OpenCV 5.0 is not: it multiplies RGB by alpha, mixes the planes of 16-bit planar images, refuses
most sizes of tiles, and shows a damaged deflate stream as a half-black picture. Where OpenCV does decode
(LZW, PackBits, JPEG, palettes, 1 bit), the header it gets is edited first, so that pixels come as they are
stored: no rotation, no alpha, no inversion.
Format: TIFF 6.0, the BigTIFF design, and Adobe's technical note on deflate.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.sources.headers import check_bytes, check_size, multi_page, refused, truncated
from engine.sources.tiff_codecs import (
    BYTE_STREAMS,
    FAX,
    JPEG,
    PREDICTED,
    STORED,
    check_jpeg,
    not_read,
    unpacker,
)

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_SUBFILE, _REDUCED, _TRANSPARENCY = 254, 1, 4
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 284, 317, 322, 323, 324, 325
_EXTRA, _FORMAT = 338, 339
_WANTED = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIP_OFFSETS, _ORIENTATION, _SAMPLES),
    *(_ROWS_PER_STRIP, _STRIP_COUNTS, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS),
    *(_TILE_COUNTS, _EXTRA, _FORMAT),
}

MOST_VALUES: Final = 2**20
"""That an entry of the directory may have: the tiles of the largest image, and four times as many."""
MOST_TILE_BYTES: Final = 2**26
MOST_PAGES: Final = 2**16

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_ASSOCIATED_ALPHA = 1
_COMPLEX_FORMATS = (5, 6)
_DTYPE_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
# The wanted tags are unsigned; libtiff takes signed ones too, so that they are read here as well.
_INTEGER_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q", 6: "b", 8: "h", 9: "i", 17: "q"}


@dataclass(slots=True)
class _Page:
    """The tags of a page; `places` is where a tag's first value stands, and its type's code."""

    order: str
    directory: int = 0
    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)
    places: dict[int, tuple[int, str]] = field(default_factory=dict)

    def one(self, tag: int, default: int) -> int:
        values = self.tags.get(tag)
        return values[0] if values else default

    @property
    def tiled(self) -> bool:
        return _TILE_OFFSETS in self.tags


def read_tiff(data: bytes, directory: int | None = None) -> npt.NDArray[Any]:
    """Decode a TIFF of one page to [h,w] or [h,w,3], RGB, in the file's own number type, orientation ignored.

    Of several pages it is the one whose `directory` is named (see `page_directories`).
    Raises SliceError: `truncated`, `multi_page`, `too_large`, `channels`, `unsupported`, `decode`.
    """
    page = _read_page(data, directory)
    height, width = page.one(_HEIGHT, 0), page.one(_WIDTH, 0)
    check_size(height, width)
    _check_whole(page, len(data))
    channels = _shown_channels(page)
    pixel_bits = page.one(_SAMPLES, 1) * max(page.tags.get(_BITS) or (1,))
    check_bytes(height * width * pixel_bits // 8)
    check_bytes(page.one(_TILE_HEIGHT, 0) * page.one(_TILE_WIDTH, 0) * pixel_bits // 8, MOST_TILE_BYTES)
    dtype = _dtype(page)
    image = _decode_by_opencv(data, page) if dtype is None else _decode_pieces(data, page, dtype)
    if image.shape[:2] != (height, width):
        raise refused("decode", f"{width}x{height} pixels announced, other found: the file is damaged")
    if image.ndim == 3:
        image = image[:, :, 0] if channels == 1 else image[:, :, :3]
    if page.one(_PHOTOMETRIC, _BLACK_IS_ZERO) == _WHITE_IS_ZERO:
        image = -image if image.dtype.kind == "f" else np.invert(image)
    return image


def place_of_pixels(data: bytes, height: int, width: int) -> int | None:
    """Where in a TIFF of `height` x `width` pixels, which `read_tiff` reads, all of them lie as 8-bit RGB.

    None of any other, and where they are not one piece.
    """
    page = _read_page(data, None)
    as_asked = (
        (page.one(_HEIGHT, 0), page.one(_WIDTH, 0)) == (height, width)
        and not page.tiled
        and _dtype(page) == np.uint8
        and page.one(_PHOTOMETRIC, _BLACK_IS_ZERO) == _RGB
        and page.one(_COMPRESSION, STORED) == STORED
        and page.one(_SAMPLES, 1) == 3
        and page.one(_PLANAR, 1) == 1
    )
    if not as_asked:
        return None
    grid = _Grid.of(page, 1)
    first, *others = page.tags[_STRIP_OFFSETS][: len(grid)]
    strip_bytes = grid.rows * width * 3
    in_one_piece = all(at == first + number * strip_bytes for number, at in enumerate(others, 1))
    return first if in_one_piece else None


def page_directories(data: bytes) -> list[int]:
    """Where in the file the directory of each page stands; thumbnails and transparency masks are no pages.

    Raises SliceError: `truncated`, `too_large`, `decode`.
    """
    layout = _Layout.of(data)
    found: list[int] = []
    seen: set[int] = set()
    try:
        at = layout.first(data)
        while at:
            if at in seen:
                raise refused("decode", "its pages go round in a circle: the file is damaged")
            if len(seen) == MOST_PAGES:
                raise refused("too_large", f"more than {MOST_PAGES:,} pages")
            seen.add(at)
            entries, following = layout.directory(data, at)
            if not layout.kind(data, entries) & (_REDUCED | _TRANSPARENCY):
                found.append(at)
            at = following
    except (struct.error, OverflowError, IndexError):
        raise truncated() from None
    return found


@dataclass(frozen=True, slots=True)
class _Layout:
    """How directories are written: byte order, letters of pointers and counters, bytes of an entry."""

    order: str
    pointer: str
    counter: str
    entry_bytes: int
    inline: int
    first_at: int

    @classmethod
    def of(cls, data: bytes) -> _Layout:
        order = "<" if data[:2] == b"II" else ">"
        big = data[2:4] in (b"+\0", b"\0+")
        return cls(order, "Q", "Q", 20, 8, 8) if big else cls(order, "I", "H", 12, 4, 4)

    def first(self, data: bytes) -> int:
        """Where the first directory stands."""
        (first,) = struct.unpack_from(self.order + self.pointer, data, self.first_at)
        return int(first)

    def directory(self, data: bytes, at: int) -> tuple[range, int]:
        """Where the entries of the directory at `at` stand, and where the next directory does (0: none)."""
        (count,) = struct.unpack_from(self.order + self.counter, data, at)
        start = at + struct.calcsize("=" + self.counter)
        end = start + count * self.entry_bytes
        (following,) = struct.unpack_from(self.order + self.pointer, data, end)
        return range(start, end, self.entry_bytes), following

    def kind(self, data: bytes, entries: range) -> int:
        """The flags of NewSubfileType, 0 where a directory has none."""
        for entry in entries:
            if struct.unpack_from(self.order + "H", data, entry)[0] == _SUBFILE:
                value = struct.unpack_from(self.order + "I", data, entry + self.entry_bytes - self.inline)
                return int(value[0])
        return 0


def _read_page(data: bytes, directory: int | None) -> _Page:
    layout = _Layout.of(data)
    order, pointer, entry_bytes, inline = layout.order, layout.pointer, layout.entry_bytes, layout.inline
    page = _Page(order)
    try:
        page.directory = layout.first(data) if directory is None else directory
        entries, next_page = layout.directory(data, page.directory)
        if next_page and directory is None:
            raise multi_page("a TIFF of several pages")
        for at in entries:
            tag, kind, length = struct.unpack_from(order + "HH" + pointer, data, at)
            code = _INTEGER_TYPES.get(kind)
            if tag not in _WANTED or code is None:
                continue
            if tag in page.tags or length > MOST_VALUES:
                raise refused("decode", f"an impossible directory entry {tag}: the file is damaged")
            place = at + entry_bytes - inline
            if length * struct.calcsize("=" + code) > inline:
                (place,) = struct.unpack_from(order + pointer, data, place)
            if place + length * struct.calcsize("=" + code) > len(data):
                raise truncated()
            page.tags[tag] = struct.unpack_from(f"{order}{length}{code}", data, place)
            page.places[tag] = place, code
    except (struct.error, OverflowError, IndexError):
        raise truncated() from None
    return page


def _check_whole(page: _Page, size: int) -> None:
    for offsets_tag, counts_tag in ((_STRIP_OFFSETS, _STRIP_COUNTS), (_TILE_OFFSETS, _TILE_COUNTS)):
        offsets, counts = page.tags.get(offsets_tag, ()), page.tags.get(counts_tag, ())
        if any(offset + count > size for offset, count in zip(offsets, counts, strict=False)):
            raise truncated()


def _shown_channels(page: _Page) -> int:
    """1 or 3: what is left without alpha. Raises SliceError `channels` for a file of other channels."""
    samples = page.one(_SAMPLES, 1)
    photometric = page.one(_PHOTOMETRIC, _BLACK_IS_ZERO)
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        if samples == 1 or (samples == 2 and page.one(_EXTRA, 0) != 0):
            return 1
        if samples == 3 and _EXTRA not in page.tags:
            return 3
    elif samples in (3, 4) or (samples == 1 and photometric == _PALETTE):
        return 3
    raise refused("channels", f"{samples} channels: a slice has 1 or 3, and perhaps alpha")


def _dtype(page: _Page) -> np.dtype[Any] | None:
    """The number type of a layout that is read here; None sends the file to OpenCV."""
    bits, formats = set(page.tags.get(_BITS) or (1,)), set(page.tags.get(_FORMAT) or (1,))
    if len(bits) > 1 or len(formats) > 1:
        return None
    width, kind = bits.pop(), formats.pop()
    if width < 1:
        raise refused("decode", f"{width} bits a sample: the file is damaged")
    if kind in _COMPLEX_FORMATS:
        raise refused("unsupported", "a TIFF of complex numbers: store their magnitude")
    compression, predictor = page.one(_COMPRESSION, STORED), page.one(_PREDICTOR, 1)
    plain = (
        compression in BYTE_STREAMS
        and page.one(_PHOTOMETRIC, _BLACK_IS_ZERO) in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
        and width in (8, 16, 32, 64)
        and not (kind == 3 and width == 8)
        and kind in _DTYPE_KINDS
        and (compression not in PREDICTED or predictor == 1 or (predictor == 2 and kind != 3))
    )
    return np.dtype(f"{page.order}{_DTYPE_KINDS[kind]}{width // 8}") if plain else None


@dataclass(frozen=True, slots=True)
class _Grid:
    """How strips or tiles of `rows` x `columns` pixels cover an image, plane by plane."""

    height: int
    width: int
    rows: int
    columns: int
    planes: int
    tiled: bool

    @classmethod
    def of(cls, page: _Page, planes: int) -> _Grid:
        height, width = page.one(_HEIGHT, 0), page.one(_WIDTH, 0)
        if page.tiled:
            rows, columns = page.one(_TILE_HEIGHT, 0), page.one(_TILE_WIDTH, 0)
        else:
            rows, columns = min(page.one(_ROWS_PER_STRIP, 0) or height, height), width
        if rows < 1 or columns < 1:
            raise refused("decode", f"pieces of {columns}x{rows} pixels: the file is damaged")
        return cls(height, width, rows, columns, planes, page.tiled)

    def __len__(self) -> int:
        return self.planes * -(-self.height // self.rows) * -(-self.width // self.columns)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        """Plane, top, left and stored rows of each piece: the last strip is short, a tile never is."""
        for plane in range(self.planes):
            for top in range(0, self.height, self.rows):
                for left in range(0, self.width, self.columns):
                    yield plane, top, left, self.rows if self.tiled else min(self.rows, self.height - top)


def _stored_pieces(data: bytes, page: _Page, grid: _Grid) -> Iterator[memoryview]:
    """Strips or tiles as they lie in the file, in the order of the grid."""
    offsets = page.tags.get(_TILE_OFFSETS if grid.tiled else _STRIP_OFFSETS, ())
    counts = page.tags.get(_TILE_COUNTS if grid.tiled else _STRIP_COUNTS, ())
    if not counts and (len(offsets) == 1 or page.one(_COMPRESSION, STORED) == STORED):
        counts = (len(data),) * len(offsets)  # old writers left them out
    if min(len(offsets), len(counts)) < len(grid):
        raise refused("decode", "strips are missing: the file is damaged")
    whole = memoryview(data)
    return (whole[at : at + count] for at, count in zip(offsets, counts, strict=False))


def _decode_pieces(data: bytes, page: _Page, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Strips or tiles of whole bytes a sample, as [h,w,samples] of the machine's own byte order."""
    samples, compression = page.one(_SAMPLES, 1), page.one(_COMPRESSION, STORED)
    grid = _Grid.of(page, samples if page.one(_PLANAR, 1) == 2 else 1)
    together = samples // grid.planes
    row_bytes = grid.columns * together * dtype.itemsize
    unpack = unpacker(compression)
    adds_up = compression in PREDICTED and page.one(_PREDICTOR, 1) == 2
    image = np.empty((grid.planes, grid.height, grid.width, together), dtype.newbyteorder("="))
    for (plane, top, left, rows), stored in zip(grid, _stored_pieces(data, page, grid), strict=False):
        piece = np.frombuffer(unpack(stored, rows * row_bytes, row_bytes), dtype)
        piece = piece.reshape(rows, grid.columns, together)
        if adds_up:
            piece = np.cumsum(piece, axis=1, dtype=image.dtype)
        spot = image[plane, top : top + rows, left : left + grid.columns]
        spot[...] = piece[: spot.shape[0], : spot.shape[1]]
    return np.moveaxis(image[..., 0], 0, 2) if grid.planes > 1 else image[0]


def _check_pieces(data: bytes, page: _Page) -> None:
    """Refuse what OpenCV would show black: damaged pieces, and compressions that it does not know."""
    samples, compression = page.one(_SAMPLES, 1), page.one(_COMPRESSION, STORED)
    bits = set(page.tags.get(_BITS) or (1,))
    if compression not in (*BYTE_STREAMS, *FAX, JPEG):
        raise not_read(compression)
    # A damaged fax cannot be told from a sound one; rows of thinned-out colour have other lengths.
    if compression in FAX or len(bits) > 1 or (page.one(_PHOTOMETRIC, 1) == _YCBCR and compression != JPEG):
        return
    grid = _Grid.of(page, samples if page.one(_PLANAR, 1) == 2 else 1)
    row_bytes = -(-grid.columns * (samples // grid.planes) * bits.pop() // 8)
    for (*_, rows), stored in zip(grid, _stored_pieces(data, page, grid), strict=False):
        if compression == JPEG:
            check_jpeg(stored)
        else:
            unpacker(compression)(stored, rows * row_bytes, row_bytes)


def _decode_by_opencv(data: bytes, page: _Page) -> npt.NDArray[Any]:
    import cv2

    samples, bits = page.one(_SAMPLES, 1), page.one(_BITS, 1)
    if bits > 8 and (samples == 2 or (samples > 1 and page.one(_PLANAR, 1) == 2)):
        raise refused("unsupported", "this layout of 16-bit channels is not read: store it uncompressed")
    _check_pieces(data, page)
    edited = bytearray(data)
    layout = _Layout.of(data)
    struct.pack_into(layout.order + layout.pointer, edited, layout.first_at, page.directory)
    for tag, value in ((_ORIENTATION, 1), (_EXTRA, _ASSOCIATED_ALPHA), (_PHOTOMETRIC, _BLACK_IS_ZERO)):
        needed = tag in page.tags and (tag != _PHOTOMETRIC or page.one(tag, 1) == _WHITE_IS_ZERO)
        if needed:
            place, code = page.places[tag]
            struct.pack_into(page.order + code, edited, place, value)
    image: npt.NDArray[Any] | None
    image = cv2.imdecode(np.frombuffer(edited, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise refused("decode", "damaged, or a kind of TIFF that is not read: store it uncompressed")
    return image if image.ndim == 2 else image[:, :, 2::-1]
