"""What the corpus has found: each was a crash, a hang, gigabytes, or another slice's pixels once."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from engine.errors import SliceError
from engine.sources.geometry import fit
from engine.sources.headers import MAX_BYTES, MAX_SCANS
from engine.sources.read import decode_slice
from engine.sources.tiff import MOST_VALUES, read_tiff
from engine.sources.windows import window
from tests.badfiles import JPEG
from tests.corpus import tiffs
from tests.corpus.originals import saved
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

IMAGE = np.random.default_rng(3).integers(0, 200, (256, 256, 3), dtype=np.uint8)


def code_of(data: bytes) -> str:
    """The code that `data` is refused with, whose slot must not seem to be decoded."""
    with pytest.raises(SliceError) as caught:
        decode_slice(data, np.empty((256, 256, 3), np.uint8))
    return caught.value.failure.code


@pytest.mark.parametrize("samples", [0, 1, 2, 5])
@pytest.mark.parametrize("side", [40, 256])
def test_a_tiff_that_calls_one_or_two_channels_rgb_does_not_get_its_neighbours_pixels(
    samples: int, side: int
) -> None:
    image = np.zeros((side, side, max(samples, 1)), np.uint8)
    count = [Entry(tiffs.SAMPLES, SHORT, (samples,))]
    assert code_of(write(image, Layout(photometric=2), more=count)) == "channels"


@pytest.mark.parametrize("shape", [(40, 40), (40, 40, 1), (40, 40, 2), (40, 40, 4), (256, 256, 1)])
def test_only_rgb_of_8_bits_is_fitted(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no RGB image"):
        fit(np.zeros(shape, np.uint8), np.empty((256, 256, 3), np.uint8))
    with pytest.raises(ValueError, match="no RGB image"):
        fit(np.zeros((40, 40, 3), np.uint16), np.empty((256, 256, 3), np.uint8))


@pytest.mark.parametrize("bits", [0, -8])
@pytest.mark.parametrize("compression", [1, 5, 7, 32_773])
def test_samples_of_no_bits_are_refused(bits: int, compression: int) -> None:
    more = [Entry(tiffs.BITS, tiffs.SSHORT, (bits,) * 3), Entry(tiffs.COMPRESSION, SHORT, (compression,))]
    assert code_of(write(IMAGE, Layout(), more=more)) == "decode"


def test_no_rows_a_strip_are_all_rows() -> None:
    data = write(IMAGE, Layout(), more=[Entry(tiffs.ROWS_PER_STRIP, SHORT, (0,))])
    assert np.array_equal(read_tiff(data), IMAGE)


def test_an_entry_without_a_value_is_as_good_as_none() -> None:
    data = write(IMAGE, Layout(), more=[Entry(tiffs.FORMAT, SHORT, ())])
    assert np.array_equal(read_tiff(data), IMAGE)
    assert code_of(write(IMAGE, Layout(), more=[Entry(tiffs.BITS, SHORT, ())])) == "decode"


@pytest.mark.parametrize("tile", [(16, 16), (16, 32), (64, 128), (256, 256)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planar", [False, True])
def test_tiles_of_any_size_are_read(tile: tuple[int, int], dtype: type, planar: bool) -> None:
    image = IMAGE[:100, :90].astype(dtype)
    assert np.array_equal(read_tiff(write(image, Layout(tile=tile, planar=planar))), image)


def test_an_entry_that_comes_twice_is_refused() -> None:
    """Each took all of the file for its values; and another reader may believe the other one."""
    sound = page(IMAGE, Layout())
    twice = Page([*sound.entries, Entry(tiffs.WIDTH, LONG, (60_000,))], sound.pieces)
    assert code_of(assemble([twice])) == "decode"


def test_an_entry_of_more_values_than_any_image_needs_is_refused() -> None:
    values = bytes(MOST_VALUES + 1)
    assert code_of(write(IMAGE, Layout(), more=[Entry(tiffs.BITS, tiffs.BYTE, values)])) == "decode"


def test_a_tiff_says_what_its_numbers_need_before_memory_is_asked_for() -> None:
    strip = zlib.compress(bytes(8192 * 24))
    values = {256: 8192, 257: 8192, 258: 64, 259: ADOBE_DEFLATE, 262: 2, 277: 3, 278: 1, 339: 3}
    entries = [Entry(tag, SHORT, (value,)) for tag, value in values.items()]
    offsets, counts = Entry(273, LONG, (8,) * 8192), Entry(279, LONG, (len(strip),) * 8192)
    assert MAX_BYTES < 8192 * 8192 * 24
    assert code_of(assemble([Page([*entries, offsets, counts], [strip])])) == "too_large"


@pytest.mark.parametrize("compression", [1, PACKBITS])
def test_a_tile_larger_than_any_image_is_refused(compression: int) -> None:
    huge = [Entry(tiffs.TILE_WIDTH, SHORT, (65_520,)), Entry(tiffs.TILE_HEIGHT, SHORT, (65_520,))]
    layout = Layout(tile=(16, 16), compression=compression)
    assert code_of(write(IMAGE[:16, :16], layout, more=huge)) == "too_large"


def test_tiles_of_no_size_are_refused() -> None:
    none = [Entry(tiffs.TILE_WIDTH, SHORT, (0,))]
    assert code_of(write(IMAGE[:16, :16], Layout(tile=(16, 16)), more=none)) == "decode"


@pytest.mark.parametrize("compression", [0, 6, 12_345, 34_712, 34_887, 50_001, 50_002])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_tiff_of_a_compression_that_nobody_knows_is_not_shown_black(compression: int, samples: int) -> None:
    more = [Entry(tiffs.COMPRESSION, SHORT, (compression,))]
    assert code_of(write(IMAGE[:, :, :samples], Layout(), more=more)) == "unsupported"


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "jpeg", "tiff_deflate"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.parametrize("side", [256, 181])
def test_damage_within_a_strip_never_shows_as_black(compression: str, mode: str, side: int) -> None:
    """There is no black in this picture: what is black has not been decoded."""
    image = Image.fromarray(IMAGE[:side, :side] // 2 + 60)
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    if mode == "P" and compression == "jpeg":
        return
    data = saved(image, "TIFF", compression=compression)
    chance = random.Random(side)
    for _ in range(25):
        damaged = bytearray(data)
        damaged[chance.randrange(200, len(data) - 1500)] ^= 1 << chance.randrange(8)
        with contextlib.suppress(SliceError):
            assert (read_tiff(bytes(damaged)) == 0).mean() < 0.1


def test_damage_that_makes_a_deflated_strip_longer_is_noticed() -> None:
    data = saved(Image.fromarray(IMAGE[:, :, 0] // 64 * 64), "TIFF", compression="tiff_deflate")
    sound = read_tiff(data)
    noticed = 0
    for place in range(40, len(data) - 400, 97):
        damaged = data[:place] + bytes((data[place] ^ 0x55,)) + data[place + 1 :]
        try:
            assert np.array_equal(read_tiff(damaged), sound)
        except SliceError:
            noticed += 1
    assert noticed > 50


def test_a_last_strip_that_is_filled_up_is_read() -> None:
    layout = Layout(compression=ADOBE_DEFLATE, rows_per_strip=64)
    tall = page(IMAGE, layout)
    data = assemble(
        [Page([each for each in tall.entries if each.tag != tiffs.HEIGHT] + [_rows(200)], tall.pieces)]
    )
    assert np.array_equal(read_tiff(data), IMAGE[:200])


def _rows(height: int) -> Entry:
    return Entry(tiffs.HEIGHT, SHORT, (height,))


@pytest.mark.parametrize("compression", ["zstd", "lzma"])
def test_a_sound_tiff_of_a_compression_that_is_not_read_is_no_damaged_one(compression: str) -> None:
    assert code_of(saved(Image.fromarray(IMAGE), "TIFF", compression=compression)) == "unsupported"


def test_a_jpeg_of_hundreds_of_scans_is_refused() -> None:
    data = saved(Image.fromarray(IMAGE), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert code_of(data[:-2] + data[last:-2] * MAX_SCANS + data[-2:]) == "decode"
    decode_slice(data, np.empty((256, 256, 3), np.uint8))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_window_costs_no_more_than_a_copy_of_the_image(dtype: type) -> None:
    """It was 35 bytes a value: gigabytes for an image that is read."""
    image = (np.arange(6_000_000) % 30_011).astype(dtype).reshape(1000, 2000, 3)
    tracemalloc.start()
    window(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * image.nbytes + image.size + 32 * 2**20


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.float16, np.float32, np.float64])
def test_a_window_is_that_of_numpys_percentiles(dtype: type) -> None:
    for size in (1, 2, 3, 100, 65_537):
        values = np.random.default_rng(size).normal(500, 200, size).astype(dtype)
        counted = values[values != 0].astype(np.float64)
        low, high = np.percentile(counted, (0.5, 99.5))
        inside = (np.clip(values.astype(np.float64), low, high) - low) / max(high - low, 1e-300)
        expected = np.rint(inside * 255) if high > low else np.where(values >= high, 255, 0)
        assert np.array_equal(window(values), expected)


def test_a_header_that_ends_within_a_jpegs_first_segment_is_truncated() -> None:
    for size in range(3, 20):
        assert code_of(JPEG[:size]) == "truncated"


def test_a_directory_beyond_all_numbers_is_truncated() -> None:
    assert code_of(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 2**64 - 1) + bytes(60)) == "truncated"
    data = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2**63) + bytes(60)
    assert code_of(data) == "truncated"
