"""TIFFs read straight into place: only where a decoder would have made the same of them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from engine.errors import SliceError
from engine.sources.files import open_file
from engine.sources.plain_tiff import MOST_MISSES, PlainTiffs
from engine.sources.read import decode_slice
from engine.sources.tiff import place_of_pixels
from tests.badfiles import tiff

SIDE = 256


def noise(seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, SIDE * SIDE * 3).astype(np.uint8).tobytes()


def in_strips(pixels: bytes, rows: int, gap: int = 0, order: str = "<") -> bytes:
    """A TIFF of strips of `rows` rows, `gap` bytes between them, the last one filled up."""
    strip = rows * SIDE * 3
    pieces = [pixels[at : at + strip].ljust(strip, b"\0") for at in range(0, len(pixels), strip)]
    body = (b"\0" * gap).join(pieces)
    places = [8 + number * (strip + gap) for number in range(len(pieces))]
    tags = {256: (3, SIDE), 257: (3, SIDE), 259: (3, 1), 262: (3, 2), 277: (3, 3), 278: (3, rows)}
    lists = {258: (3, [8, 8, 8]), 273: (4, places), 279: (4, [strip] * len(pieces))}
    at = 8 + len(body)
    lists_at = at + 2 + 12 * (len(tags) + len(lists)) + 4
    entries, behind = [], b""
    for tag, (kind, value) in tags.items():
        entries.append((tag, struct.pack(order + "HHIHH", tag, kind, 1, value, 0)))
    for tag, (kind, values) in lists.items():
        entries.append((tag, struct.pack(order + "HHII", tag, kind, len(values), lists_at + len(behind))))
        behind += struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
    directory = struct.pack(order + "H", len(entries)) + b"".join(entry for _, entry in sorted(entries))
    start = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, at)
    return start + body + directory + struct.pack(order + "I", 0) + behind


def decoded(data: bytes) -> npt.NDArray[np.uint8]:
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    decode_slice(data, out)
    return out


def read(plain: PlainTiffs, path: Path, data: bytes) -> npt.NDArray[np.uint8] | None:
    path.write_bytes(data)
    out = np.full((SIDE, SIDE, 3), 77, np.uint8)
    with open_file(os.fsencode(path)) as file:
        return out if plain.read(file, out) else None


@pytest.mark.parametrize(
    "made",
    [
        lambda pixels: tiff(SIDE, SIDE, pixels=pixels),
        lambda p: in_strips(p, 11),
        lambda p: in_strips(p, 11, 0, ">"),
    ],
)
def test_a_file_like_a_known_one_is_read_as_the_decoder_reads_it(tmp_path: Path, made: object) -> None:
    assert callable(made)
    plain = PlainTiffs()
    assert read(plain, tmp_path / "a.tif", made(noise(1))) is None
    plain.learn(made(noise(1)))
    for seed in (1, 2):
        straight = read(plain, tmp_path / "a.tif", made(noise(seed)))
        assert straight is not None
        np.testing.assert_array_equal(straight, decoded(made(noise(seed))))


@pytest.mark.parametrize(
    "data",
    [
        tiff(SIDE, SIDE, 4),
        tiff(SIDE, SIDE, 1),
        tiff(SIDE, SIDE, 1, 16),
        tiff(SIDE - 1, SIDE),
        tiff(SIDE, SIDE, tags={262: 6}),
        tiff(SIDE, SIDE, tags={339: 3}),
        in_strips(noise(1), 11, gap=4),
        noise(1)[:100].join([b"\x89PNG\r\n\x1a\n", b""]),
        b"",
    ],
    ids=["alpha", "grey", "16-bit", "smaller", "ycbcr", "floats", "gaps", "png", "empty"],
)
def test_what_is_not_as_the_models_take_it_is_not_learnt(tmp_path: Path, data: bytes) -> None:
    plain = PlainTiffs()
    plain.learn(data.ljust(SIDE * SIDE * 3, b"\0"))
    assert read(plain, tmp_path / "a.tif", data.ljust(SIDE * SIDE * 3, b"\0")) is None


@pytest.mark.parametrize("at", [0, 2, 4, -1, -5, -30, -90])
def test_a_file_that_differs_in_one_byte_beside_its_pixels_goes_to_the_decoder(
    tmp_path: Path, at: int
) -> None:
    plain, known = PlainTiffs(), in_strips(noise(1), 11)
    plain.learn(known)
    other = bytearray(known)
    other[at] ^= 1
    assert read(plain, tmp_path / "a.tif", bytes(other)) is None
    assert read(plain, tmp_path / "a.tif", known) is not None


def test_a_size_whose_files_all_differ_is_given_up(tmp_path: Path) -> None:
    plain, known = PlainTiffs(), in_strips(noise(1), 11)
    plain.learn(known)
    for _ in range(MOST_MISSES):
        assert read(plain, tmp_path / "a.tif", known[:-1] + b"x") is None
    assert read(plain, tmp_path / "a.tif", known) is None


def test_pixels_are_found_where_they_begin() -> None:
    data = in_strips(noise(3), 128)
    at = place_of_pixels(data, SIDE, SIDE)
    assert at is not None
    assert data[at : at + SIDE * SIDE * 3] == noise(3)


def test_a_file_that_is_written_meanwhile_is_told(tmp_path: Path) -> None:
    plain, known = PlainTiffs(), in_strips(noise(1), 11)
    plain.learn(known)
    path = tmp_path / "a.tif"
    path.write_bytes(known)
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    with (  # noqa: PT012 - it is told when the block is left
        pytest.raises(SliceError, match="changed while it was read"),
        open_file(os.fsencode(path)) as file,
    ):
        assert plain.read(file, out)
        with path.open("ab") as grown:
            grown.write(b"more")
