"""PNG, JPEG and WebP headers: what a file says of itself, looked at before any decoder sees it.

A decoder may allocate what a header asks for, return a half-grey picture for half a file, or quietly take the
first of many frames. The checks here are cheap (no pixel is touched) and come first.
Formats: RFC 2083 and the APNG specification, ITU-T T.81, RFC 9649.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from engine.errors import Failure, SliceError

MAX_PIXELS = 2**26
MAX_SIDE = 32_768
MAX_BYTES = 2**29
"""Of the pixels of one image, as its file has them: what is decoded lies in memory, and is windowed there."""
MAX_SCANS = 100
"""Of a JPEG: a progressive one has about ten, and each costs a decoder as much as a whole image."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"

# A marker inside entropy-coded data: 0xFF followed by neither a stuffed zero nor a restart marker.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})

_PNG_GREY = (0, 4)
_WEBP_ANIMATED = 0x02


@dataclass(frozen=True, slots=True)
class Header:
    """Size in pixels as stored (no orientation applied), and whether there is one channel beside alpha."""

    height: int
    width: int
    grey: bool


def refused(code: str, message: str) -> SliceError:
    """The error of a file that cannot become a slice."""
    return SliceError(Failure("decode", code, message))


def truncated() -> SliceError:
    """The error of a file that ends before its image does."""
    return refused("truncated", "the file ends before its image does: copy it again from its source")


def multi_page(what: str) -> SliceError:
    """The error of a file that holds several images."""
    return refused("multi_page", f"{what}: store each image in a file of its own")


def check_size(height: int, width: int) -> None:
    """Raise SliceError (`too_large`, `decode`) for a size that will not be decoded."""
    if height < 1 or width < 1:
        raise refused("decode", f"the header says {width}x{height} pixels: the file is damaged")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        limits = f"at most {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side are read"
        raise refused("too_large", f"{width}x{height} pixels: {limits}")


def check_bytes(size: int, most: int = MAX_BYTES) -> None:
    """Raise SliceError (`too_large`) for pixels, or a part of them, that fill more than `most` bytes."""
    if size > most:
        raise refused("too_large", f"{size:,} bytes of pixels at a time: at most {most:,} are read")


def read_png_header(data: bytes) -> Header:
    """Walk the chunks of a PNG up to IEND."""
    if len(data) < 33:
        raise truncated()
    width, height, _, colour = struct.unpack_from(">IIBB", data, 16)
    check_size(height, width)
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":
            return Header(height, width, grey=colour in _PNG_GREY)
        if kind == b"acTL" and length == 8 and position + 20 <= len(data):
            (frames,) = struct.unpack_from(">I", data, position + 8)
            if frames > 1:
                raise multi_page(f"an animated PNG of {frames} frames")
        position += 12 + length
    raise truncated()


def read_jpeg_header(data: bytes) -> Header:
    """Walk the segments of a JPEG up to its own end marker (a thumbnail inside a segment has another)."""
    header: Header | None = None
    scans = 0
    position = 2
    while position + 2 <= len(data):
        if data[position] != 0xFF:
            raise refused("decode", f"no JPEG segment begins at byte {position}: the file is damaged")
        marker = data[position + 1]
        if marker == _JPEG_END:
            break
        if marker == 0xFF or marker in _JPEG_BARE:
            position += 1 if marker == 0xFF else 2
            continue
        if position + 4 > len(data):
            raise truncated()
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in _JPEG_FRAMES:
            if position + 10 > len(data):
                raise truncated()
            height, width, channels = struct.unpack_from(">HHB", data, position + 5)
            check_size(height, width)
            header = Header(height, width, grey=channels == 1)
        position += 2 + length
        if marker == _JPEG_SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise refused(
                    "decode", f"more than {MAX_SCANS} scans: the file is damaged, or built to be slow"
                )
            following = _JPEG_MARKER.search(data, position)
            if following is None:
                raise truncated()
            position = following.start()
    else:
        raise truncated()
    if header is None:
        raise refused("decode", "a JPEG without an image: the file is damaged")
    return header


def read_webp_header(data: bytes) -> Header:
    """Read the size of a WebP (lossy, lossless or extended)."""
    (riff_length,) = struct.unpack_from("<I", data, 4)
    if riff_length + 8 > len(data) or len(data) < 30:
        raise truncated()
    kind = data[12:16]
    if kind == b"VP8X":
        if data[20] & _WEBP_ANIMATED:
            raise multi_page("an animated WebP")
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise refused("decode", f"a WebP that begins with {kind!r}: the file is damaged")
    check_size(height, width)
    return Header(height, width, grey=False)
