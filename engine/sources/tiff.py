"""TIFF: the format of the real data, so the common layouts are read here, the rest by OpenCV.

Reading uncompressed and deflated strips in numpy is several times faster than OpenCV's decoder, and exact
where OpenCV 5.0 is not: it multiplies RGB by alpha, mixes the planes of 16-bit planar images, and shows a
damaged deflate stream as a half-black picture. Where OpenCV does decode (LZW, PackBits, JPEG, palettes,
tiles, 1 bit), the header it gets is edited first, so that pixels come as they are stored: no rotation, no
alpha, no inversion.
Format: TIFF 6.0, the BigTIFF design, and Adobe's technical note on deflate.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.sources.headers import check_size, multi_page, refused, truncated

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_OFFSETS, _TILE_COUNTS, _EXTRA, _FORMAT = 284, 317, 324, 325, 338, 339
_WANTED = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIP_OFFSETS, _ORIENTATION, _SAMPLES),
    *(_ROWS_PER_STRIP, _STRIP_COUNTS, _PLANAR, _PREDICTOR, _TILE_OFFSETS, _TILE_COUNTS, _EXTRA, _FORMAT),
}

_STORED, _DEFLATE, _OLD_DEFLATE = 1, 8, 32_946
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ASSOCIATED_ALPHA = 1
_COMPLEX_FORMATS = (5, 6)
_DTYPE_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
# Byte, short, long and long8: the types that the wanted tags come in.
_INTEGER_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}


@dataclass(slots=True)
class _Page:
    """The tags of the file's only page; `places` is where the value of a one-value tag stands in the file."""

    order: str
    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)

    def one(self, tag: int, default: int) -> int:
        values = self.tags.get(tag)
        return values[0] if values else default


def read_tiff(data: bytes) -> npt.NDArray[Any]:
    """Decode a TIFF of one page to [h,w] or [h,w,3], RGB, in the file's own number type, orientation ignored.

    Raises SliceError: `truncated`, `multi_page`, `too_large`, `channels`, `unsupported`, `decode`.
    """
    page = _read_page(data)
    height, width = page.one(_HEIGHT, 0), page.one(_WIDTH, 0)
    check_size(height, width)
    _check_whole(page, len(data))
    channels = _shown_channels(page)
    dtype = _dtype(page)
    image = _decode_by_opencv(data, page) if dtype is None else _decode_strips(data, page, dtype)
    if image.shape[:2] != (height, width):
        raise refused("decode", f"{width}x{height} pixels announced, other found: the file is damaged")
    if image.ndim == 3:
        image = image[:, :, 0] if channels == 1 else image[:, :, :3]
    if page.one(_PHOTOMETRIC, _BLACK_IS_ZERO) == _WHITE_IS_ZERO:
        image = -image if image.dtype.kind == "f" else np.invert(image)
    return image


def _read_page(data: bytes) -> _Page:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    page = _Page(order)
    pointer, counter, entry_bytes, inline = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    try:
        (start,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + counter, data, start)
        first = start + struct.calcsize("=" + counter)
        (next_page,) = struct.unpack_from(order + pointer, data, first + count * entry_bytes)
        if next_page:
            raise multi_page("a TIFF of several pages")
        for at in range(first, first + count * entry_bytes, entry_bytes):
            tag, kind, length = struct.unpack_from(order + "HH" + pointer, data, at)
            code = _INTEGER_TYPES.get(kind)
            if tag not in _WANTED or code is None:
                continue
            place = at + entry_bytes - inline
            if length * struct.calcsize("=" + code) > inline:
                (place,) = struct.unpack_from(order + pointer, data, place)
            if place + length * struct.calcsize("=" + code) > len(data):
                raise truncated()
            page.tags[tag] = struct.unpack_from(f"{order}{length}{code}", data, place)
            page.places[tag] = place
    except (struct.error, OverflowError):
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
    elif samples <= 4:
        return 3
    raise refused("channels", f"{samples} channels: a slice has 1 or 3, and perhaps alpha")


def _dtype(page: _Page) -> np.dtype[Any] | None:
    """The number type of a layout that is read here; None sends the file to OpenCV."""
    bits, formats = set(page.tags.get(_BITS, (1,))), set(page.tags.get(_FORMAT, (1,)))
    if len(bits) > 1 or len(formats) > 1:
        return None
    width, kind = bits.pop(), formats.pop()
    if kind in _COMPLEX_FORMATS:
        raise refused("unsupported", "a TIFF of complex numbers: store their magnitude")
    compression, predictor = page.one(_COMPRESSION, _STORED), page.one(_PREDICTOR, 1)
    plain = (
        _STRIP_OFFSETS in page.tags
        and compression in (_STORED, _DEFLATE, _OLD_DEFLATE)
        and page.one(_PHOTOMETRIC, _BLACK_IS_ZERO) in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
        and width in (8, 16, 32, 64)
        and not (kind == 3 and width == 8)
        and kind in _DTYPE_KINDS
        and (compression == _STORED or predictor == 1 or (predictor == 2 and kind != 3))
    )
    return np.dtype(f"{page.order}{_DTYPE_KINDS[kind]}{width // 8}") if plain else None


def _decode_strips(data: bytes, page: _Page, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    height, width, samples = page.one(_HEIGHT, 0), page.one(_WIDTH, 0), page.one(_SAMPLES, 1)
    planes = samples if page.one(_PLANAR, 1) == 2 else 1
    row_bytes = width * (samples // planes) * dtype.itemsize
    rows_per_strip = min(page.one(_ROWS_PER_STRIP, height), height)
    strip_rows = [min(rows_per_strip, height - top) for top in range(0, height, rows_per_strip)] * planes
    sizes = [rows * row_bytes for rows in strip_rows]
    offsets = page.tags[_STRIP_OFFSETS]
    deflated = page.one(_COMPRESSION, _STORED) != _STORED
    counts = page.tags.get(_STRIP_COUNTS) or ((len(data),) if deflated else sizes)
    if len(offsets) < len(sizes) or len(counts) < len(sizes):
        raise refused("decode", "strips are missing: the file is damaged")
    whole = memoryview(data)
    strips = [whole[offset : offset + count] for offset, count in zip(offsets, counts, strict=False)]
    take = _inflate if deflated else _cut
    body = b"".join(take(strip, size) for strip, size in zip(strips, sizes, strict=False))
    if len(body) != sum(sizes):
        raise truncated()
    image = np.frombuffer(body, dtype).reshape(planes, height, width, samples // planes)
    if deflated and page.one(_PREDICTOR, 1) == 2:
        native = dtype.newbyteorder("=")
        image = np.cumsum(image, axis=2, dtype=native)
    if not image.dtype.isnative:
        image = image.astype(dtype.newbyteorder("="))
    return np.moveaxis(image[..., 0], 0, 2) if planes > 1 else image[0]


def _cut(strip: memoryview, size: int) -> memoryview:
    return strip[:size]


def _inflate(strip: memoryview, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        pixels = stream.decompress(strip, size)
        # The stream's checksum stands behind the last pixel, and is read only when more is asked for.
        if not stream.eof:
            stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise refused("decode", f"damaged compressed data ({error}): copy the file again") from None
    if len(pixels) < size:
        raise truncated()
    return pixels


def _decode_by_opencv(data: bytes, page: _Page) -> npt.NDArray[Any]:
    import cv2

    samples, bits = page.one(_SAMPLES, 1), page.one(_BITS, 1)
    if bits > 8 and (samples == 2 or (samples > 1 and page.one(_PLANAR, 1) == 2)):
        raise refused("unsupported", "this layout of 16-bit channels is not read: store it uncompressed")
    edited = bytearray(data)
    for tag, value in ((_ORIENTATION, 1), (_EXTRA, _ASSOCIATED_ALPHA), (_PHOTOMETRIC, _BLACK_IS_ZERO)):
        needed = tag in page.tags and (tag != _PHOTOMETRIC or page.one(tag, 1) == _WHITE_IS_ZERO)
        if needed:
            struct.pack_into(page.order + "H", edited, page.places[tag], value)
    image: npt.NDArray[Any] | None
    image = cv2.imdecode(np.frombuffer(edited, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise refused("decode", "damaged, or a kind of TIFF that is not read: store it uncompressed")
    return image if image.ndim == 2 else image[:, :, 2::-1]
