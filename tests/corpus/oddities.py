"""Files built to hurt: each promises what it is not, or is what no slice is.

`may` are the codes that such a file may end with, "ok" where it may be scored; None where any code will do.
"""

from __future__ import annotations

import functools
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.badfiles import png_chunk
from tests.corpus import tiffs
from tests.corpus.originals import PNG_HEAD, encoded, exif, numbers, profile, saved
from tests.corpus.pictures import Picture
from tests.corpus.tiffs import (
    ADOBE_DEFLATE,
    LONG,
    PACKBITS,
    SHORT,
    Entry,
    Layout,
    Page,
    assemble,
    page,
    write,
)

SIDES = (0, 1, 2, 255, 4096, 8192, 16_383, 16_384, 32_767, 32_768, 32_769, 65_500, 65_535)
MOST_PIXELS = 2**26


@dataclass(frozen=True, slots=True)
class Odd:
    """A file, and the codes that it may end with."""

    data: bytes
    may: frozenset[str] | None = None


Oddity = Callable[[Picture, random.Random], Odd]


def codes(*names: str) -> frozenset[str]:
    return frozenset(names)


OK = codes("ok")
SEVERAL = codes("ok", "multi_page")
"""Of several images: each is scored, or none is."""
NO_IMAGE = codes("not_an_image", "truncated", "empty")


# Many images in one file


def animated(picture: Picture, chance: random.Random) -> Odd:
    """An animated PNG or WebP, as browsers show them."""
    turned = (picture, 255 - picture)  # two alike would become one
    frames = [Image.fromarray(turned[index % 2]) for index in range(chance.choice((2, 3, 12)))]
    kind = chance.choice(("PNG", "WEBP"))
    return Odd(saved(frames[0], kind, save_all=True, append_images=frames[1:]), codes("multi_page"))


def animated_falsely(picture: Picture, chance: random.Random) -> Odd:
    """A PNG that says how many frames it has, and has not."""
    still = saved(Image.fromarray(picture), "PNG", compress_level=1)
    frames = chance.choice((0, 1, 2, 1000, 2**31 - 1, 2**32 - 1))
    told = png_chunk(b"acTL", struct.pack(">II", frames, 0))
    control = struct.pack(">IIIIIHHBB", 0, *(chance.choice((1, 64, 65_535)) for _ in range(4)), 1, 1, 0, 0)
    places = [33, len(still) - 12]
    at = chance.choice(places)
    return Odd(still[:at] + told + png_chunk(b"fcTL", control) * chance.choice((0, 1, 2)) + still[at:])


def several_pages(picture: Picture, chance: random.Random) -> Odd:
    """A TIFF of several pages, alike or not."""
    layout = Layout(order=chance.choice("<>"), big=chance.random() < 0.2)
    pages = [
        page(numbers(picture[: 1 + index * 7], chance), layout) for index in range(chance.choice((2, 3, 20)))
    ]
    return Odd(assemble(pages, layout.order, layout.big), SEVERAL)


def directories_in_a_ring(picture: Picture, chance: random.Random) -> Odd:
    """The last directory says that another one follows: itself, the first, one beyond the end."""
    layout = Layout(order=chance.choice("<>"), big=chance.random() < 0.3)
    pages = [page(picture, layout) for _ in range(chance.choice((1, 1, 2, 5)))]
    data = assemble(pages, layout.order, layout.big)
    code = layout.order + ("Q" if layout.big else "I")
    (first,) = struct.unpack_from(code, data, 8 if layout.big else 4)
    last = pages[-1]
    target = chance.choice((first, first, 8, 2, len(data), len(data) - 2, 2**31, 2**32 - 1))
    pages[-1] = Page(last.entries, last.pieces, last.offsets_tag, next=target)
    return Odd(assemble(pages, layout.order, layout.big))


def directories_within(picture: Picture, chance: random.Random) -> Odd:
    """Sub-directories, EXIF and GPS directories that hold themselves."""
    layout = Layout(order=chance.choice("<>"))
    plain = write(picture, layout)
    (first,) = struct.unpack_from(layout.order + "I", plain, 4)
    targets = tuple(chance.choice((first, 8, 0, 2**32 - 1)) for _ in range(chance.choice((1, 2, 500))))
    more = [
        Entry(chance.choice((tiffs.SUB_IFDS, tiffs.EXIF, 34_853)), chance.choice((LONG, tiffs.IFD)), targets)
    ]
    return Odd(write(picture, layout, more=more), codes("ok", "multi_page", "decode"))


def many_directories(picture: Picture, chance: random.Random) -> Odd:
    """A page of nothing, dozens of times, or thousands."""
    small = page(picture[:1, :1], Layout())
    empty = Page([])
    count = 3000 if chance.random() < 0.04 else 30
    return Odd(assemble([small] + [chance.choice((small, empty))] * count))


# Sizes


def sides(picture: Picture, chance: random.Random) -> Odd:
    """A header of any format that tells another size."""
    height, width = chance.choice(SIDES), chance.choice(SIDES)
    kind = chance.choice(("PNG", "JPEG", "WEBP", "TIFF"))
    data = bytearray(saved(Image.fromarray(picture), kind))
    if kind == "PNG":
        struct.pack_into(">II", data, 16, width, height)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    elif kind == "JPEG":
        at = next(at for at in range(len(data)) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC2))
        struct.pack_into(">HH", data, at + 5, height, width)
    elif kind == "WEBP":
        struct.pack_into("<HH", data, 26, width & 0x3FFF, height & 0x3FFF)
    else:
        return Odd(_tiff_that_says(picture, {tiffs.WIDTH: width, tiffs.HEIGHT: height}, chance))
    whole = (height, width) == picture.shape[:2]
    refused = codes("decode", "truncated", "too_large")
    return Odd(bytes(data), None if whole or kind == "WEBP" else refused | OK)


def long_and_thin(picture: Picture, chance: random.Random) -> Odd:
    """One pixel wide and as long as may be; or one pixel longer."""
    length = chance.choice((32_768, 32_768, 32_769, 65_500, 65_535))
    line = np.resize(picture[:1], (1, length, 3))
    image = line if chance.random() < 0.5 else line.transpose(1, 0, 2)
    kind = chance.choice(("PNG", "JPEG", "TIFF", "deflated"))
    may = OK if length == 32_768 else codes("too_large")
    if kind in ("TIFF", "deflated"):
        layout = Layout(
            compression=ADOBE_DEFLATE if kind == "deflated" else 1, rows_per_strip=chance.choice((None, 64))
        )
        length_tags = [
            Entry(tag, LONG, (side,)) for tag, side in ((257, image.shape[0]), (256, image.shape[1]))
        ]
        return Odd(write(np.ascontiguousarray(image), layout, more=length_tags), may)
    if kind == "JPEG" and length > 65_500:
        kind = "PNG"  # libjpeg writes no more
    return Odd(saved(Image.fromarray(np.ascontiguousarray(image)), kind), may)


def bomb(picture: Picture, chance: random.Random) -> Odd:
    """A few kilobytes that become as many pixels as may be, or more."""
    height, width = chance.choice(
        ((8192, 8192), (2048, 32_768), (32_768, 2048), (8192, 8193), (20_000, 20_000))
    )
    may = OK if height * width <= MOST_PIXELS else codes("too_large")
    kind = chance.choice(("grey", "rgb", "sixteen", "float", "tiff", "packbits", "jpeg", "webp"))
    if kind in ("grey", "rgb", "sixteen"):
        bits, colour, channels = {"grey": (8, 0, 1), "rgb": (8, 2, 3), "sixteen": (16, 2, 6)}[kind]
        return Odd(_png_of_zeros(height, width, bits, colour, channels), may)
    if kind in ("float", "tiff"):
        return Odd(_tiff_of_zeros(height, width, kind == "float"), may | codes("too_large"))
    if kind == "packbits":
        pixels = height * width // 128 + 1
        entries = _claims(height, width, 1, 8, PACKBITS)
        return Odd(assemble([Page(entries, [b"\x81\0" * pixels])]), may)
    if kind == "webp" and max(height, width) > 16_383:
        height, width = 8192, 8192
        may = OK
    if height * width > 2 * MOST_PIXELS:
        height, width, may = 8192, 8193, codes("too_large")
    return Odd(_one_colour(kind, height, width), may)


# Many small parts


def many_parts(picture: Picture, chance: random.Random) -> Odd:
    """Thousands of chunks, segments, scans, restarts and entries, empty or alike."""
    image = Image.fromarray(picture)
    kind = chance.choice(("chunks", "segments", "scans", "entries", "same entries", "long entry", "strips"))
    if kind == "chunks":
        data = saved(image, "PNG", compress_level=1)
        filler = png_chunk(chance.choice((b"tEXt", b"IDAT", b"zzZz", b"eXIf")), b"") * 20_000
        return Odd(data[:33] + filler + data[33:], codes("ok", "decode"))
    if kind == "segments":
        data = saved(image, "JPEG")
        return Odd(data[:2] + b"\xff\xfe\0\x02" * 100_000 + data[2:], OK)
    if kind == "scans":
        data = saved(image, "JPEG", progressive=True)
        last = data.rindex(b"\xff\xda")
        return Odd(data[:-2] + data[last:-2] * 500 + data[-2:], codes("decode"))
    plain = page(picture, Layout())
    if kind == "entries":
        strange = [Entry(40_000 + index, SHORT, (index,)) for index in range(20_000)]
        return Odd(assemble([Page(plain.entries + strange, plain.pieces)]), OK)
    if kind == "same entries":
        # Each takes all of the file for its values.
        tag = chance.choice((tiffs.STRIP_OFFSETS, tiffs.STRIP_COUNTS, tiffs.BITS, tiffs.EXTRA))
        value = struct.pack("<I", 8)
        same = [Entry(tag, LONG, value, count=100_000)] * 5000
        return Odd(assemble([Page(plain.entries + same, [*plain.pieces, bytes(400_000)])]))
    if kind == "long entry":
        tag = chance.choice((tiffs.WIDTH, tiffs.BITS, tiffs.STRIP_COUNTS, tiffs.FORMAT, tiffs.ROWS_PER_STRIP))
        return Odd(write(picture, Layout(), more=[Entry(tag, tiffs.BYTE, bytes(3_000_000))]))
    height = len(picture)
    places = Entry(tiffs.STRIP_OFFSETS, LONG, (8,) * (height * 1000))
    rows = [Entry(tiffs.ROWS_PER_STRIP, SHORT, (1,)), Entry(tiffs.STRIP_COUNTS, LONG, (1,) * (height * 1000))]
    return Odd(write(picture, Layout(), more=[places, *rows]))


def inflating_notes(picture: Picture, chance: random.Random) -> Odd:
    """A picture whose text or colour profile is a bomb."""
    data = saved(Image.fromarray(picture), "PNG", compress_level=1)
    body = _deflated_zeros(2**26)
    kind, head = chance.choice(
        ((b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"), (b"iCCP", b"profile\0\0"))
    )
    chunk = png_chunk(kind, head + body)
    return Odd(data[:33] + chunk * chance.choice((1, 1, 10)) + data[33:], codes("ok", "decode"))


# Odd contents in sound files


def odd_floats(picture: Picture, chance: random.Random) -> Odd:
    """Not a number, infinite, the largest and the smallest there are, here and there or everywhere."""
    dtype = chance.choice((np.float16, np.float32, np.float64))
    limits = np.finfo(dtype)
    image = picture[:, :, : chance.choice((1, 3))].astype(dtype)
    odd = np.array([np.nan, np.inf, -np.inf, limits.max, -limits.max, limits.tiny, -0.0], dtype)
    share = chance.choice((0.001, 0.3, 1.0))
    rng = np.random.default_rng(chance.randrange(2**32))
    where = rng.random(image.shape) < share
    image[where] = rng.choice(odd[: chance.choice((1, 3, len(odd)))], int(where.sum()))
    compression = chance.choice((1, ADOBE_DEFLATE))
    layout = Layout(order=chance.choice("<>"), compression=compression, photometric=_either(image, chance))
    return Odd(write(image, layout), OK)


def odd_integers(picture: Picture, chance: random.Random) -> Odd:
    """The least and the largest numbers, and nothing else."""
    dtype = np.dtype(chance.choice(("i1", "i2", "i4", "u2", "u4", "i8", "u8")))
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(chance.randrange(2**32))
    values = np.array([limits.min, limits.max, 0, 1], dtype)[: chance.choice((1, 2, 4))]
    image = rng.choice(values, (*picture.shape[:2], 1))
    return Odd(write(image, Layout(order=chance.choice("<>"), photometric=_either(image, chance))), OK)


def odd_profiles(picture: Picture, chance: random.Random) -> Odd:
    """Colour profiles that are large, cut or no profiles, in all formats."""
    image = Image.fromarray(picture)
    told = chance.choice(
        (b"", b"\0", profile(), profile(128), profile(200_000), profile()[:100], chance.randbytes(3000))
    )
    kind = chance.choice(("PNG", "JPEG", "WEBP", "TIFF"))
    data = saved(image, kind, icc_profile=told) if told else saved(image, kind)
    if kind == "JPEG" and chance.random() < 0.5:
        part = b"ICC_PROFILE\0" + bytes((chance.randrange(256), chance.randrange(256))) + told[:65_000]
        segment = b"\xff\xe2" + struct.pack(">H", len(part) + 2) + part
        data = data[:2] + segment * chance.choice((1, 3, 40)) + data[2:]
    return Odd(data, codes("ok", "decode"))


def odd_exif(picture: Picture, chance: random.Random) -> Odd:
    """EXIF with impossible turns, long notes, directories in a ring, thumbnails that are images."""
    image = Image.fromarray(picture)
    block = bytearray(exif(chance.choice((1, 6, 0, 9, 65_535)), note=chance.choice(("", "x" * 60_000))))
    if chance.random() < 0.6:
        for _ in range(chance.choice((1, 5, 40))):
            block[chance.randrange(6, len(block))] = chance.randrange(256)
    thumbnail = saved(image.resize((16, 16)), "JPEG") if chance.random() < 0.4 else b""
    block += thumbnail
    kind = chance.choice(("JPEG", "JPEG", "PNG", "WEBP"))
    data = saved(image, kind)
    body = bytes(block)
    if kind == "JPEG":
        body = body if body.startswith(b"Exif") else b"Exif\0\0" + body
        body = body[:65_533]
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
        return Odd(data, OK)
    return Odd(saved(image, kind, exif=body), codes("ok", "decode"))


def tiff_of_lies(picture: Picture, chance: random.Random) -> Odd:
    """A TIFF each of whose fields may be any that a TIFF may have."""
    values = {
        tiffs.WIDTH: (picture.shape[1], picture.shape[1], 1, 16, 4000),
        tiffs.HEIGHT: (picture.shape[0], picture.shape[0], 1, 16, 4000),
        tiffs.BITS: (8, 8, 8, 1, 4, 16, 32, 64),
        tiffs.COMPRESSION: (1, 1, 5, 7, 8, PACKBITS, 2, 3, 4, 6, 34_676, 50_000),
        tiffs.PHOTOMETRIC: (0, 1, 2, 2, 3, 5, 6, 8, 32_844),
        tiffs.SAMPLES: (3, 3, 3, 0, 1, 2, 4, 5),
        tiffs.ROWS_PER_STRIP: (picture.shape[0], 1, 0, 7, 65_535),
        tiffs.PLANAR: (1, 1, 2, 0),
        tiffs.PREDICTOR: (1, 1, 2, 3),
        tiffs.FORMAT: (1, 1, 2, 3, 4, 5, 6),
        tiffs.EXTRA: (0, 1, 2),
        tiffs.ORIENTATION: (1, 6, 0),
    }
    tiles = chance.random() < 0.3
    layout = Layout(order=chance.choice("<>"), big=chance.random() < 0.2, tile=(16, 32) if tiles else None)
    if tiles:
        values |= {tiffs.TILE_WIDTH: (32, 16, 0, 17, 65_520), tiffs.TILE_HEIGHT: (16, 32, 0, 1, 65_520)}
    changed = chance.sample(sorted(values), chance.choice((1, 2, 3, 6, len(values))))
    more = []
    for tag in changed:
        kind = chance.choice((SHORT, SHORT, SHORT, LONG, tiffs.BYTE, tiffs.SLONG))
        value = min(chance.choice(values[tag]), 255 if kind == tiffs.BYTE else 2**31 - 1)
        more.append(Entry(tag, kind, (value,) * chance.choice((1, 1, 1, 3, 4))))
    return Odd(write(picture, layout, more=more))


def rare_tiff(picture: Picture, chance: random.Random) -> Odd:
    """Compressions that this decoder was built without, and some that few have."""
    image = Image.fromarray(picture).convert(chance.choice(("RGB", "L")))
    if chance.random() < 0.5:
        data = saved(image, "TIFF", compression=chance.choice(("zstd", "lzma")))
        return Odd(data, codes("ok", "unsupported"))
    rare = chance.choice((34_661, 34_676, 34_712, 34_887, 50_001, 50_002, 32_809, 32_908, 12_345))
    return Odd(
        write(picture, Layout(), more=[Entry(tiffs.COMPRESSION, SHORT, (rare,))]),
        codes("unsupported", "decode"),
    )


def no_image(picture: Picture, chance: random.Random) -> Odd:
    """Something else under the name of a slice: another format, text, an archive, a signature, nothing."""
    image = Image.fromarray(picture)
    kind = chance.choice(
        ("BMP", "GIF", "PPM", "ICO", "JPEG2000", "AVIF", "zip", "text", "signature", "", "noise")
    )
    if kind == "zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("slice.png", encoded(".png", picture))
        return Odd(file.getvalue(), NO_IMAGE)
    if kind == "text":
        return Odd(
            chance.choice(("<html>not found</html>", "\ufeffpatient;date\n", "\0" * 999)).encode(), NO_IMAGE
        )
    if kind == "signature":
        head = chance.choice((b"II*\0", b"MM\0*", b"II+\0", PNG_HEAD, b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"))
        return Odd(head[: chance.randint(1, len(head))], NO_IMAGE | codes("decode"))
    if kind == "noise":
        return Odd(b"\0" + chance.randbytes(5000), NO_IMAGE)
    return Odd(saved(image, kind) if kind else b"", NO_IMAGE)


ODDITIES: tuple[Oddity, ...] = (
    *(animated, animated_falsely, several_pages, directories_in_a_ring, directories_within),
    *(many_directories, sides, sides, long_and_thin, many_parts, inflating_notes, odd_floats, odd_floats),
    *(odd_integers, odd_profiles, odd_exif, tiff_of_lies, tiff_of_lies, tiff_of_lies, rare_tiff, no_image),
)
HEAVY: tuple[Oddity, ...] = (bomb,)
"""Those that take a decoder seconds and hundreds of megabytes."""


@functools.cache
def _one_colour(kind: str, height: int, width: int) -> bytes:
    image = Image.new("L" if kind == "jpeg" else "RGB", (width, height), 7)
    options = {"lossless": True, "method": 0} if kind == "webp" else {"progressive": height == width}
    return saved(image, kind.upper(), **options)


def _claims(height: int, width: int, samples: int, bits: int, compression: int) -> list[Entry]:
    values = {
        tiffs.WIDTH: width,
        tiffs.HEIGHT: height,
        tiffs.BITS: bits,
        tiffs.COMPRESSION: compression,
        tiffs.PHOTOMETRIC: 1 if samples == 1 else 2,
        tiffs.SAMPLES: samples,
        tiffs.ROWS_PER_STRIP: height,
    }
    return [Entry(tag, LONG, (value,)) for tag, value in values.items()]


def _png_of_zeros(height: int, width: int, bits: int, colour: int, pixel_bytes: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = _deflated_zeros(height * (1 + width * pixel_bytes))
    return PNG_HEAD + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def _tiff_of_zeros(height: int, width: int, floats: bool) -> bytes:
    """One strip a row, all of them the same bytes of the file."""
    strip = zlib.compress(bytes(width * (24 if floats else 3)), 1)
    entries = _claims(height, width, 3, 64 if floats else 8, ADOBE_DEFLATE)
    entries = [entry for entry in entries if entry.tag != tiffs.ROWS_PER_STRIP]
    entries += [
        Entry(tiffs.ROWS_PER_STRIP, LONG, (1,)),
        Entry(tiffs.FORMAT, SHORT, (3 if floats else 1,) * 3),
        Entry(tiffs.STRIP_OFFSETS, LONG, (8,) * height),
        Entry(tiffs.STRIP_COUNTS, LONG, (len(strip),) * height),
    ]
    return assemble([Page(entries, [strip])])


@functools.cache
def _deflated_zeros(size: int) -> bytes:
    packer = zlib.compressobj(1)
    block = bytes(2**20)
    parts = [packer.compress(block) for _ in range(size // len(block))]
    return b"".join(parts) + packer.compress(bytes(size % len(block))) + packer.flush()


def _tiff_that_says(picture: Picture, values: dict[int, int], chance: random.Random) -> bytes:
    kind = chance.choice((SHORT, LONG))
    layout = Layout(
        compression=chance.choice((1, 1, ADOBE_DEFLATE, PACKBITS)), tile=chance.choice((None, None, (16, 16)))
    )
    return write(picture, layout, more=[Entry(tag, kind, (value,)) for tag, value in values.items()])


def _either(image: np.ndarray, chance: random.Random) -> int | None:
    return chance.choice((None, 0)) if image.shape[2] == 1 else None
