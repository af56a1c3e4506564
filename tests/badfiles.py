"""Files that scoring must survive, one of each kind, written with the standard library alone.

`write_bad_files` fills a folder; `png` and `tiff` are the small writers that it stands on.
"""

from __future__ import annotations

import base64
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

# 16x16, of a smooth gradient.
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxO"
    "UlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
    "T09PT09PT0//wAARCAAQABADASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUF"
    "BAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVW"
    "V1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi"
    "4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAEC"
    "AxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVm"
    "Z2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk5ebn6Onq"
    "8vP09fb3+Pn6/9oADAMBAAIRAxEAPwDkLfS+ny1p2+l9Plro7fS+ny1pW+l9Plp5fmG2pNGuf//Z"
)
WEBP = base64.b64decode(
    "UklGRkYAAABXRUJQVlA4IDoAAADQAQCdASoQABAAAsBMJbACdAEOtYmoAAD++VJ5Yn6Xe1xOwAgtKNHpM/uE+z+etpdAapwqGz1uUUAA"
)

_PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}


@dataclass(frozen=True, slots=True)
class BadFile:
    """One file of the folder: its name, and the code that it is quarantined with; None where it is scored."""

    name: bytes
    code: str | None


def png(width: int, height: int, channels: int = 3, bits: int = 8, pixels: bytes | None = None) -> bytes:
    """A PNG of `pixels` (rows of big-endian samples; a gradient if not given)."""
    body = pixels if pixels is not None else gradient(width, height, channels * bits // 8)
    stride = width * channels * bits // 8
    rows = b"".join(b"\0" + body[top : top + stride] for top in range(0, len(body), stride))
    header = struct.pack(">IIBBBBB", width, height, bits, _PNG_COLOURS[channels], 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        ]
    )


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff(
    width: int,
    height: int,
    channels: int = 3,
    bits: int = 8,
    pixels: bytes | None = None,
    *,
    tags: dict[int, int] | None = None,
    order: str = "<",
    pages: int = 1,
) -> bytes:
    """A TIFF of one strip, its directory behind it; `tags` adds to the usual ones or replaces them."""
    body = pixels if pixels is not None else gradient(width, height, channels * bits // 8)
    photometric = 2 if channels >= 3 else 1
    values = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: channels,
        278: height,
    }
    values |= {279: len(body), **(tags or {})}
    start = 8 + len(body) + len(body) % 2
    directory_bytes = 2 + 12 * len(values) + 4
    file = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, start)
    file += body + b"\0" * (len(body) % 2)
    for page in range(pages):
        file += struct.pack(order + "H", len(values))
        for tag, value in sorted(values.items()):
            is_long = tag in (273, 279)
            field = struct.pack(order + ("I" if is_long else "H"), value)
            file += struct.pack(order + "HHI", tag, 4 if is_long else 3, 1) + field.ljust(4, b"\0")
        last = page == pages - 1
        file += struct.pack(order + "I", 0 if last else start + directory_bytes * (page + 1))
    return file


def gradient(width: int, height: int, pixel_bytes: int) -> bytes:
    """Bytes of a smooth picture, row by row."""
    return bytes(
        (7 * x + 3 * y + 40 * part) % 251
        for y in range(height)
        for x in range(width)
        for part in range(pixel_bytes)
    )


def write_bad_files(folder: Path) -> list[BadFile]:
    """Write one file of each kind into `folder` (made if missing), and say what is to become of it.

    Links and pipes are among them. What needs another user than root (no permission) is not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    good = tiff(256, 256)
    floats = struct.pack("<768f", *(index / 7 for index in range(768)))
    odd_floats = struct.pack("<6f", float("nan"), float("inf"), float("-inf"), 0.0, -2.5, 3e38)
    contents: dict[bytes, tuple[bytes, str | None]] = {
        b"good.tif": (good, None),
        b"big_endian.tif": (tiff(256, 256, order=">"), None),
        b"other_size.tif": (tiff(40, 31), None),
        b"wide.png": (png(300, 1), None),
        b"grey.png": (png(32, 32, channels=1), None),
        b"grey_alpha.png": (png(32, 32, channels=2), None),
        b"rgba.png": (png(32, 32, channels=4), None),
        b"rgba.tif": (tiff(32, 32, channels=4, tags={338: 2}), None),
        b"sixteen_bit.png": (png(32, 32, channels=1, bits=16), None),
        b"sixteen_bit.tif": (tiff(32, 32, channels=1, bits=16), None),
        b"float.tif": (tiff(32, 24, channels=1, bits=32, pixels=floats, tags={339: 3}), None),
        b"float_odd.tif": (tiff(3, 2, channels=1, bits=32, pixels=odd_floats, tags={339: 3}), None),
        b"constant.png": (png(64, 64, pixels=b"\x50" * (64 * 64 * 3)), None),
        b"black.tif": (tiff(256, 256, pixels=bytes(256 * 256 * 3)), None),
        b"one_pixel.png": (png(1, 1), None),
        b"photo.jpg": (JPEG, None),
        b"photo.jpeg.webp": (WEBP, None),
        b"really_a.png": (JPEG, None),
        b"UPPER.PNG": (png(8, 8), None),
        b"name with spaces.png": (png(8, 8), None),
        b"name'with\"quotes.png": (png(8, 8), None),
        b"name,with,commas.png": (png(8, 8), None),
        b"name\nwith\r\nnewlines.png": (png(8, 8), None),
        b"name\xff\xfenot_utf8.png": (png(8, 8), None),
        "ansikt_\N{LATIN SMALL LETTER A WITH RING ABOVE}.png".encode(): (png(8, 8), None),
        b"=cmd|' '!A0.png": (png(8, 8), None),
        b"empty.png": (b"", "empty"),
        b"truncated.tif": (good[: len(good) // 2], "truncated"),
        b"truncated_directory.tif": (good[:-20], "truncated"),
        b"truncated.png": (png(64, 64)[:-30], "truncated"),
        b"truncated.jpg": (JPEG[:-40], "truncated"),
        b"truncated.webp": (WEBP[:-20], "truncated"),
        b"signature_only.png": (b"\x89PNG\r\n\x1a\n", "truncated"),
        b"damaged.png": (_damaged_png(), "decode"),
        b"text.tif": (b"patient, date, finding\n" * 40, "not_an_image"),
        b"five_channels.tif": (tiff(8, 8, channels=5), "channels"),
        b"two_pages.tif": (tiff(8, 8, pages=2), "multi_page"),
        b"animated.png": (_animated_png(), "multi_page"),
        b"bomb.png": (_png_header_only(60_000, 60_000), "too_large"),
        b"thin_bomb.png": (_png_header_only(40_000, 1), "too_large"),
    }
    for name, (data, _) in contents.items():
        (folder / os.fsdecode(name)).write_bytes(data)
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop").symlink_to(".", target_is_directory=True)
    files = [BadFile(name, code) for name, (_, code) in contents.items()]
    return [
        *files,
        BadFile(b"pipe.png", "not_a_file"),
        BadFile(b"dangling.png", "not_found"),
        BadFile(b"loop", "link_loop"),
    ]


def _damaged_png() -> bytes:
    whole = bytearray(png(64, 64))
    middle = len(whole) // 2
    whole[middle : middle + 4] = bytes(value ^ 0xFF for value in whole[middle : middle + 4])
    return bytes(whole)


def _animated_png() -> bytes:
    still = png(8, 8)
    after_header = 8 + 25
    return still[:after_header] + png_chunk(b"acTL", struct.pack(">II", 2, 0)) + still[after_header:]


def _png_header_only(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IEND", b"")
