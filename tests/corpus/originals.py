"""Sound files of every format, as cameras, scanners and converters write them. All of them are scored."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, TiffImagePlugin

from tests.badfiles import png_chunk
from tests.corpus.pictures import Picture
from tests.corpus.tiffs import (
    ADOBE_DEFLATE,
    OLD_DEFLATE,
    PACKBITS,
    STORED,
    Layout,
    write,
)

_FAX = ("group3", "group4", "tiff_ccitt")
_COMPRESSIONS = ("tiff_lzw", "jpeg", "packbits", *_FAX)

Encoder = Callable[[Picture, random.Random], bytes]

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def tiff_as_in_the_set(picture: Picture, chance: random.Random) -> bytes:
    """RGB, 8 bits, one strip or a few, uncompressed: the real data."""
    rows = chance.choice((None, None, 1, 7, 64))
    return write(picture, Layout(rows_per_strip=rows))


def tiff_of_any_layout(picture: Picture, chance: random.Random) -> bytes:
    """Any order, numbers, planes, tiles, strips and alpha that are read here."""
    image = numbers(picture, chance)
    alpha = int(chance.random() < 0.2 and image.dtype == np.uint8)
    if alpha:
        image = np.concatenate([image, image[:, :, :1]], axis=2)
    compression = chance.choice((STORED, STORED, ADOBE_DEFLATE, OLD_DEFLATE))
    integers = image.dtype.kind != "f"
    layout = Layout(
        order=chance.choice("<>"),
        big=chance.random() < 0.2,
        compression=compression,
        predictor=chance.choice((1, 2)) if compression != STORED and integers else 1,
        planar=chance.random() < 0.3 and image.shape[2] > 1,
        tile=chance.choice((None, None, (16, 16), (32, 64), (256, 256))),
        rows_per_strip=chance.choice((None, 1, 3, 50, 10**4)),
        photometric=chance.choice((None, 0)) if image.shape[2] - alpha == 1 else None,
        alpha=alpha,
        directory_first=chance.random() < 0.3,
    )
    return write(image, layout)


def tiff_by_another_decoder(picture: Picture, chance: random.Random) -> bytes:
    """LZW, JPEG, PackBits and fax, palettes, single bits, other colours: what OpenCV is asked to decode."""
    kind = chance.choice((*_COMPRESSIONS, *_COMPRESSIONS, "packbits by hand", "palette", "float"))
    if kind == "packbits by hand":
        return write(picture, Layout(compression=PACKBITS, order=chance.choice("<>")))
    image = Image.fromarray(picture)
    options: dict[str, Any] = {"compression": kind}
    if kind in ("palette", "float"):
        image = image.quantize(chance.choice((2, 17, 256))) if kind == "palette" else image.convert("F")
        options = {"compression": chance.choice((None, "tiff_lzw"))}
    elif kind in _FAX:
        image = image.convert("1")
    else:
        modes = ("RGB", "RGB", "L", "CMYK", "YCbCr", "LAB", "1")
        mode = chance.choice(modes[: 6 if kind == "jpeg" else None])
        image = image.convert(mode)
    if chance.random() < 0.3:
        options["tiffinfo"] = _camera_tags(chance)
    return saved(image, "TIFF", **options)


def png_of_any_kind(picture: Picture, chance: random.Random) -> bytes:
    """Grey, RGB, palette, alpha, 1 to 16 bits, interlaced or not, with text and profiles."""
    kind = chance.choice(
        ("rgb", "rgb", "grey", "alpha", "grey_alpha", "palette", "sixteen", "bit", "interlaced")
    )
    if kind == "interlaced":
        return interlaced_png(picture if chance.random() < 0.5 else picture[:, :, :1])
    if kind == "sixteen":
        wide = picture.astype(np.uint16) * np.uint16(chance.choice((1, 16, 257)))
        return encoded(".png", wide if chance.random() < 0.5 else wide[:, :, 1])
    image = Image.fromarray(picture)
    if kind == "palette":
        image = image.quantize(chance.choice((2, 16, 200)))
    elif kind != "rgb":
        mode = {"grey": "L", "alpha": "RGBA", "grey_alpha": "LA", "bit": "1"}[kind]
        image = image.convert(mode)
    options: dict[str, Any] = {}
    if chance.random() < 0.3:
        told = PngImagePlugin.PngInfo()
        told.add_text("Comment", "slice " * chance.randint(1, 200), zip=chance.random() < 0.5)
        options["pnginfo"] = told
    return saved(image, "PNG", compress_level=1, **_extras(chance), **options)


def jpeg_of_any_kind(picture: Picture, chance: random.Random) -> bytes:
    """Baseline and progressive, grey, RGB and CMYK, any sampling, with restarts, EXIF and profiles."""
    image = Image.fromarray(picture).convert(chance.choice(("RGB", "RGB", "RGB", "L", "CMYK")))
    return saved(
        image,
        "JPEG",
        quality=chance.choice((20, 75, 95)),
        progressive=chance.random() < 0.3,
        subsampling=chance.choice((0, 1, 2)),
        restart_marker_blocks=chance.choice((0, 0, 1, 5)),
        optimize=chance.random() < 0.2,
        **_extras(chance),
    )


def webp_of_any_kind(picture: Picture, chance: random.Random) -> bytes:
    """Lossy and lossless, with alpha, EXIF and profiles (which make it an extended one)."""
    image = Image.fromarray(picture)
    if chance.random() < 0.3:
        image.putalpha(Image.fromarray(picture[:, :, 0]))
    options = _extras(chance)
    return saved(image, "WEBP", lossless=chance.random() < 0.4, quality=60, method=0, **options)


ORIGINALS: tuple[Encoder, ...] = (
    tiff_as_in_the_set,
    tiff_of_any_layout,
    tiff_by_another_decoder,
    png_of_any_kind,
    jpeg_of_any_kind,
    webp_of_any_kind,
)


def numbers(picture: Picture, chance: random.Random) -> npt.NDArray[Any]:
    """The picture in other numbers: grey or RGB, integers and floats of all sizes."""
    image = picture if chance.random() < 0.6 else picture[:, :, 1:2]
    dtype = chance.choice(("u1", "u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"))
    if dtype == "u1":
        return image
    if dtype == "i1":
        return (image // 2).astype(np.int8)
    return (image.astype(np.float64) * chance.choice((1, 7, 100))).astype(dtype)


def interlaced_png(image: npt.NDArray[np.uint8]) -> bytes:
    """An interlaced PNG of [h,w,1 or 3]."""
    height, width, channels = image.shape
    rows = bytearray()
    for top, left, down, right in _ADAM7:
        part = image[top::down, left::right]
        if part.size:
            for row in part:
                rows += b"\0" + row.tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 1)
    body = zlib.compress(bytes(rows), 1)
    return PNG_HEAD + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def encoded(ending: str, image: npt.NDArray[Any], *options: int) -> bytes:
    """What OpenCV makes of [h,w] or [h,w,3] RGB."""
    done, data = cv2.imencode(ending, image[:, :, ::-1] if image.ndim == 3 else image, options)
    assert done
    return data.tobytes()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """What Pillow makes of it."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int, note: str = "") -> bytes:
    """An EXIF block, as Pillow takes it."""
    block = Image.Exif()
    block[274] = orientation
    block[306] = "2026:02:30 25:61:61"
    if note:
        block[270] = note
    return block.tobytes()


def profile(size: int = 400) -> bytes:
    """A colour profile that says little; `size` in bytes."""
    header = struct.pack(">I4sI4s4s4s", size, b"test", 0x04000000, b"mntr", b"RGB ", b"XYZ ")
    return (header.ljust(36, b"\0") + b"acsp").ljust(size, b"\0")


def _extras(chance: random.Random) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if chance.random() < 0.3:
        extras["exif"] = exif(chance.randint(1, 8))
    if chance.random() < 0.3:
        extras["icc_profile"] = profile(chance.choice((132, 400, 5000)))
    return extras


def _camera_tags(chance: random.Random) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "a description " * chance.randint(1, 40)
    tags[274] = chance.randint(1, 8)
    tags[34675] = profile()
    return tags
