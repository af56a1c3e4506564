"""How the strips and tiles of a TIFF are unpacked: each to exactly the bytes that it must have, or refused.

OpenCV 5.0 shows a damaged stream of 8-bit samples as a half-black picture, and one of a compression that it
does not know as a black one; both would be scored as healthy. Its decoder of 16-bit samples tells the two, so
every stream of bytes is given to that one, in a file of its own, and the bytes are put together elsewhere.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.sources.headers import read_jpeg_header, refused, truncated

STORED, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 7, 8, 32_946, 32_773, 34_925, 50_000
FAX: Final = (2, 3, 4)
BYTE_STREAMS: Final = (STORED, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD)
PREDICTED: Final = (LZW, DEFLATE, OLD_DEFLATE, LZMA, ZSTD)
"""Those before which a predictor may have been at work."""

_NAMES: Final = {LZMA: "LZMA", ZSTD: "Zstandard", 34_712: "JPEG 2000", 50_001: "WebP", 50_002: "JPEG XL"}
_DAMAGED: Final = "damaged compressed data: copy the file again"
_CHUNK: Final = 2**16
_MOST_SPARE: Final = 2**24
_LONGEST_SIDE: Final = 2**20  # OpenCV's own limit

Unpack = Callable[[memoryview, int, int], bytes | memoryview]
"""A piece as stored, the bytes that it must have, and how many of these a row has."""


def unpacker(compression: int) -> Unpack:
    """What unpacks pieces of a compression in BYTE_STREAMS.

    It raises SliceError: `truncated`, `decode`, `unsupported`.
    """
    if compression == STORED:
        return _cut
    if compression in (DEFLATE, OLD_DEFLATE):
        return _inflate
    return partial(_unpack_by_opencv, compression)


def check_jpeg(piece: memoryview) -> None:
    """Raise SliceError where a piece is no whole JPEG stream: OpenCV would leave the rest of it black."""
    read_jpeg_header(bytes(piece))


def not_read(compression: int) -> Exception:
    """The error of a compression that is not decoded."""
    name = _NAMES.get(compression, f"kind {compression}")
    return refused("unsupported", f"a TIFF with {name} compression: store it uncompressed")


def _cut(piece: memoryview, size: int, _row_bytes: int) -> memoryview:
    if len(piece) < size:
        raise truncated()
    return piece[:size]


def _inflate(piece: memoryview, size: int, _row_bytes: int) -> bytes:
    stream = zlib.decompressobj()
    spare = _MOST_SPARE
    try:
        pixels = stream.decompress(piece, size)
        # The checksum stands behind the last byte of all, and some writers fill up the last strip.
        while not stream.eof and stream.unconsumed_tail and spare > 0:
            spare -= len(stream.decompress(stream.unconsumed_tail, _CHUNK))
    except zlib.error as error:
        raise refused("decode", f"{_DAMAGED} ({error})") from None
    if len(pixels) < size:
        raise truncated()
    if spare <= 0:
        raise refused("decode", f"{_DAMAGED} (it goes on behind the last pixel)")
    return pixels


def _unpack_by_opencv(compression: int, piece: memoryview, size: int, row_bytes: int) -> bytes:
    pairs = size // 2
    rows = size // row_bytes
    if row_bytes % 2 == 0:
        height, width = rows, row_bytes // 2
    elif rows % 2 == 0:
        height, width = rows // 2, row_bytes
    else:
        height, width = 1, pairs
    if max(height, width) > _LONGEST_SIDE or (size % 2 and size > _LONGEST_SIDE):
        raise refused("unsupported", "compressed strips of this size are not read: store it uncompressed")
    unpacked = _decode(piece, compression, height, width, 16).tobytes() if pairs else b""
    if size % 2:
        unpacked += _decode(piece, compression, 1, size, 8).tobytes()[-1:]
    return unpacked


def _decode(piece: memoryview, compression: int, height: int, width: int, bits: int) -> npt.NDArray[Any]:
    """The piece as a grey image of `bits` a pixel."""
    import cv2

    tags = (
        *((256, width), (257, height), (258, bits), (259, compression), (262, 1)),
        *((273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, height), (279, len(piece))),
    )
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    file = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + piece
    image: npt.NDArray[Any] | None = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.shape != (height, width):
        if compression in _NAMES:
            raise not_read(compression)
        raise refused("decode", _DAMAGED)
    return image
