"""What can happen to a file: blindly, or where it hurts. Each takes bytes and gives other bytes."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.badfiles import png_chunk
from tests.corpus import tiffs

Mutation = Callable[[bytes, random.Random], bytes]

_EXTREMES = (0, 1, 2, 3, 255, 256, 32_767, 32_768, 32_769, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_HUGE = (*_EXTREMES, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


# Blindly


def flip_bits(data: bytes, chance: random.Random) -> bytes:
    """One bit, a few or many."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 4, 20, 300)) if data else 0):
        place = chance.randrange(8 * len(changed))
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def flip_head(data: bytes, chance: random.Random) -> bytes:
    """Bytes among the first hundred, where headers are."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 5))):
        changed[chance.randrange(min(len(data), 100))] = chance.randrange(256)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    """Ends anywhere, most often near its end."""
    keep = chance.random() if chance.random() < 0.5 else 1 - chance.random() ** 4
    return data[: int(len(data) * keep)]


def cut_out(data: bytes, chance: random.Random) -> bytes:
    """A piece is missing within."""
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.choice((1, 2, 17, 512, 4096)) :]


def insert(data: bytes, chance: random.Random) -> bytes:
    """Grown in the middle, or before its first byte."""
    at = chance.choice((0, 8, chance.randrange(len(data) + 1)))
    return data[:at] + chance.randbytes(chance.choice((1, 2, 16, 4096))) + data[at:]


def append(data: bytes, chance: random.Random) -> bytes:
    """Something behind its end: nothing, noise, itself."""
    return data + chance.choice((bytes(5000), chance.randbytes(100), data, b"\xff\xd9", b"IEND"))


def lose_block(data: bytes, chance: random.Random) -> bytes:
    """A block of a disk that gave zeros, or another one's bytes."""
    start = chance.randrange(0, len(data) + 1, 512)
    size = chance.choice((512, 4096))
    other = chance.choice((bytes(size), b"\xff" * size, data[:size]))
    return data[:start] + other[: len(data) - start] + data[start + size :]


def repeat_block(data: bytes, chance: random.Random) -> bytes:
    """A block that was written twice."""
    start = chance.randrange(len(data) + 1)
    block = data[start : start + chance.choice((12, 64, 4096))]
    return data[:start] + block + data[start:]


def put_number(data: bytes, chance: random.Random) -> bytes:
    """An extreme number of two, four or eight bytes, of either order, anywhere or near the front."""
    order, code = chance.choice("<>"), chance.choice("HIQ")
    size = struct.calcsize(order + code)
    if len(data) < size:
        return data
    end = len(data) - size + 1
    at = chance.randrange(min(end, 400)) if chance.random() < 0.7 else chance.randrange(end)
    value = struct.pack(order + code, chance.choice(_HUGE) % 256**size)
    return data[:at] + value + data[at + size :]


def swap_bytes(data: bytes, chance: random.Random) -> bytes:
    """All pairs of bytes exchanged, as by a copy through the wrong kind of tape."""
    even = len(data) // 2 * 2
    changed = bytearray(data)
    changed[:even:2], changed[1:even:2] = data[1:even:2], data[:even:2]
    return bytes(changed)


def as_text(data: bytes, chance: random.Random) -> bytes:
    """Copied as text: line ends changed, or taken for UTF-8."""
    way = chance.randrange(3)
    if way == 0:
        return data.replace(b"\n", b"\r\n")
    if way == 1:
        return data.replace(b"\r\n", b"\n")
    return data.decode("latin-1").encode()


BLIND: tuple[Mutation, ...] = (
    *(flip_bits, flip_bits, flip_head, cut, cut, cut_out, insert, append, lose_block, repeat_block),
    *(put_number, put_number, swap_bytes, as_text),
)


# Where it hurts


@dataclass(frozen=True, slots=True)
class Field:
    """An entry of a TIFF's directory: where it stands, and how its numbers are packed."""

    at: int
    order: str
    big: bool

    @property
    def bytes(self) -> int:
        return 20 if self.big else 12

    @property
    def count_code(self) -> str:
        return self.order + ("Q" if self.big else "I")


def tiff_fields(data: bytes) -> list[Field]:
    """The entries of the first directory, as many as there are."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    except (struct.error, IndexError, OverflowError):
        return []
    first = start + (8 if big else 2)
    fields = [Field(first + index * (20 if big else 12), order, big) for index in range(min(count, 300))]
    return [field for field in fields if field.at + field.bytes <= len(data)]


def tiff_value(data: bytes, chance: random.Random) -> bytes:
    """An entry's value or offset becomes an extreme one."""
    return _with_field(data, chance, lambda field: (field.at + (12 if field.big else 8), field.count_code))


def tiff_count(data: bytes, chance: random.Random) -> bytes:
    """An entry says that it has more values, or fewer."""
    return _with_field(data, chance, lambda field: (field.at + 4, field.count_code))


def tiff_type(data: bytes, chance: random.Random) -> bytes:
    """An entry's values are of another type."""
    changed = bytearray(data)
    for field in _some(tiff_fields(data), chance):
        struct.pack_into(field.order + "H", changed, field.at + 2, chance.choice((*tiffs.CODES, 0, 18, 999)))
    return bytes(changed)


def tiff_tag(data: bytes, chance: random.Random) -> bytes:
    """An entry becomes another, perhaps one that is there already."""
    tags = (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330)
    tags += (338, 339, 347, 512, 513, 529, 530, 532, 34_665, 34_675, 33_432, 50_706)
    changed = bytearray(data)
    for field in _some(tiff_fields(data), chance):
        struct.pack_into(field.order + "H", changed, field.at, chance.choice(tags))
    return bytes(changed)


def tiff_sensible(data: bytes, chance: random.Random) -> bytes:
    """Another value that other files do have: another compression, depth, format, planes, predictor."""
    values = {
        tiffs.WIDTH: (1, 2, 64, 255, 257, 4000, 65_535),
        tiffs.HEIGHT: (1, 2, 64, 255, 257, 4000, 65_535),
        tiffs.BITS: (1, 2, 4, 7, 8, 10, 12, 16, 24, 32, 64, 128),
        tiffs.COMPRESSION: (
            *(1, 2, 3, 4, 5, 6, 7, 8, 32_773, 32_809, 32_908, 32_909, 32_946, 32_947, 34_661, 34_676),
            *(34_677, 34_712, 34_887, 34_925, 50_000, 50_001, 50_002),
        ),
        tiffs.PHOTOMETRIC: (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 32_803, 32_844, 32_845, 34_892),
        tiffs.SAMPLES: (0, 1, 2, 3, 4, 5, 6, 255, 65_535),
        tiffs.ROWS_PER_STRIP: (0, 1, 2, 7, 65_535),
        tiffs.PLANAR: (0, 1, 2, 3),
        tiffs.PREDICTOR: (0, 1, 2, 3, 4),
        tiffs.FORMAT: (0, 1, 2, 3, 4, 5, 6, 7),
        tiffs.EXTRA: (0, 1, 2, 3, 999),
        tiffs.TILE_WIDTH: (0, 1, 16, 17, 65_535),
        tiffs.TILE_HEIGHT: (0, 1, 16, 17, 65_535),
        tiffs.ORIENTATION: (0, 1, 5, 6, 8, 9),
        tiffs.FILL_ORDER: (0, 1, 2, 3),
    }
    changed = bytearray(data)
    fields = [field for field in tiff_fields(data) if _tag(data, field) in values]
    for field in _some(fields, chance):
        tag, (kind,) = _tag(data, field), struct.unpack_from(field.order + "H", data, field.at + 2)
        place = field.at + (12 if field.big else 8)
        code = "I" if kind == tiffs.LONG else "H"
        struct.pack_into(field.order + code, changed, place, chance.choice(values[tag]))
    return bytes(changed)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each whole chunk."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            return
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def png_structure(data: bytes, chance: random.Random) -> bytes:
    """Chunks lost, doubled, moved, of another kind or with other contents, their checksums made right."""
    chunks = list(png_chunks(data))
    if not chunks:
        return flip_bits(data, chance)
    index = chance.randrange(len(chunks))
    kind, body = chunks[index]
    way = chance.randrange(7)
    if way == 0:
        del chunks[index]
    elif way == 1:
        chunks.insert(chance.randrange(len(chunks) + 1), (kind, body))
    elif way == 2:
        chance.shuffle(chunks)
    elif way == 3:
        known = (
            b"acTL",
            b"fcTL",
            b"fdAT",
            b"PLTE",
            b"tRNS",
            b"iCCP",
            b"eXIf",
            b"sBIT",
            b"IDAT",
            b"IHDR",
            b"IEND",
        )
        chunks[index] = (chance.choice(known), body)
    elif way == 4:
        chunks[index] = (kind, flip_bits(body, chance))
    elif way == 5 and kind == b"IHDR":
        chunks[index] = (kind, put_number(body, chance))
    else:
        chunks[index] = (kind, body[: chance.randrange(len(body) + 1)])
    return data[:8] + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_pixels(data: bytes, chance: random.Random) -> bytes:
    """A sound stream of other rows: too few, too many, unknown filters."""
    chunks = list(png_chunks(data))
    try:
        rows = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    except zlib.error:
        return flip_bits(data, chance)
    rows = chance.choice(
        (rows[: len(rows) // 2], rows * 3, flip_bits(rows, chance), b"", b"\x09" * len(rows))
    )
    kept = [(kind, body) for kind, body in chunks if kind != b"IDAT"]
    kept.insert(max(len(kept) - 1, 0), (b"IDAT", zlib.compress(rows, 1)))
    return data[:8] + b"".join(png_chunk(*chunk) for chunk in kept)


def jpeg_segments(data: bytes) -> list[tuple[int, int, int]]:
    """Marker, place and length of the segments before the first scan."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        (length,) = struct.unpack_from(">H", data, at + 2)
        found.append((marker, at, length + 2))
        if marker == 0xDA:
            break
        at += 2 + length
    return found


def jpeg_structure(data: bytes, chance: random.Random) -> bytes:
    """Segments lost, doubled, of another length or kind, with other contents."""
    segments = jpeg_segments(data)
    if not segments:
        return flip_bits(data, chance)
    marker, at, length = chance.choice(segments)
    segment = data[at : at + length]
    way = chance.randrange(6)
    if way == 0:
        return data[:at] + data[at + length :]
    if way == 1:
        return data[:at] + segment * chance.choice((2, 3, 50)) + data[at + length :]
    if way == 2:
        wrong = struct.pack(">H", chance.choice((0, 1, 2, 3, length, 65_535)))
        return data[: at + 2] + wrong + data[at + 4 :]
    if way == 3:
        return (
            data[: at + 1] + bytes((chance.choice((*range(0xC0, 0xD0), 0xDB, 0xDD, 0xE1)),)) + data[at + 2 :]
        )
    if way == 4 and 0xC0 <= marker < 0xD0 and len(segment) > 9:
        sides = struct.pack(">HH", *(chance.choice((0, 1, 16, 255, 8000, 32_768, 65_535)) for _ in range(2)))
        return data[: at + 5] + sides + data[at + 9 :]
    return data[: at + 4] + flip_bits(segment[4:], chance) + data[at + length :]


def webp_structure(data: bytes, chance: random.Random) -> bytes:
    """Chunks of other lengths and kinds, in another order; a RIFF size that lies; other flags and canvas."""
    if len(data) < 30:
        return flip_bits(data, chance)
    way = chance.randrange(5)
    if way == 0:
        return data[:4] + struct.pack("<I", chance.choice(_EXTREMES)) + data[8:]
    if way == 1:
        return data[:16] + struct.pack("<I", chance.choice(_EXTREMES)) + data[20:]
    if way == 2:
        kind = chance.choice((b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"ICCP", b"XMP "))
        return data[:12] + kind + data[16:]
    if way == 3:
        return data[:20] + bytes((chance.randrange(256),)) + data[21:]
    return data[:20] + flip_bits(data[20:34], chance) + data[34:]


_AWARE: dict[str, tuple[Mutation, ...]] = {
    "tiff": (tiff_value, tiff_count, tiff_type, tiff_tag, tiff_sensible, tiff_sensible),
    "png": (png_structure, png_structure, png_pixels),
    "jpeg": (jpeg_structure,),
    "webp": (webp_structure,),
}


def mutated(data: bytes, chance: random.Random) -> tuple[bytes, list[str]]:
    """A chain of one to five of them, and their names; half of them know the format."""
    names = []
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
        aware = _AWARE.get(format_of(data), ())
        mutation = chance.choice(aware) if aware and chance.random() < 0.5 else chance.choice(BLIND)
        if data:
            data = mutation(data, chance)
        names.append(mutation.__name__)
    return data, names


def format_of(data: bytes) -> str:
    """By its first bytes; "" for none of the four."""
    heads = {b"II": "tiff", b"MM": "tiff", b"\x89P": "png", b"\xff\xd8": "jpeg", b"RI": "webp"}
    return heads.get(data[:2], "")


def _with_field(data: bytes, chance: random.Random, place: Callable[[Field], tuple[int, str]]) -> bytes:
    changed = bytearray(data)
    for field in _some(tiff_fields(data), chance):
        at, code = place(field)
        value = chance.choice(_HUGE if field.big else _EXTREMES)
        if chance.random() < 0.3:
            value = chance.choice((len(data), len(data) - 1, at, field.at, 8, 4))
        struct.pack_into(code, changed, at, value)
    return bytes(changed)


def _some(fields: list[Field], chance: random.Random) -> list[Field]:
    return chance.sample(fields, min(len(fields), chance.choice((1, 1, 2))))


def _tag(data: bytes, field: Field) -> int:
    (tag,) = struct.unpack_from(field.order + "H", data, field.at)
    return int(tag)
