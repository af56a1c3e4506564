"""What holds for all files of a kind, drawn by hypothesis."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from engine.errors import Failure, SliceError
from engine.sources.headers import PNG_SIGNATURE, read_jpeg_header, read_png_header, read_webp_header
from engine.sources.read import decode_slice
from engine.sources.tiff import TIFF_SIGNATURES, read_tiff
from tests.badfiles import JPEG, WEBP, png
from tests.corpus.judge import OURS, documented_codes
from tests.corpus.mutations import mutated
from tests.corpus.tiffs import ADOBE_DEFLATE, OLD_DEFLATE, SHORT, STORED, Entry, Layout, write

# What the same decoders of the same versions are given is the same in every test run.
unchanging = settings(max_examples=150, deadline=None, derandomize=True)

DTYPES = [np.dtype(name) for name in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")]
SIDES = st.integers(1, 40)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[np.ndarray, Layout]:
    """An image [h,w,samples] of any numbers, and a layout that such an image can have."""
    dtype = draw(st.sampled_from(DTYPES))
    samples = draw(st.sampled_from((1, 3, 4)))
    image = draw(npst.arrays(dtype, (draw(SIDES), draw(SIDES), samples)))
    compression = draw(st.sampled_from((STORED, ADOBE_DEFLATE, OLD_DEFLATE)))
    may_predict = compression != STORED and dtype.kind != "f"
    return image, Layout(
        order=draw(st.sampled_from("<>")),
        big=draw(st.booleans()),
        compression=compression,
        predictor=draw(st.sampled_from((1, 2))) if may_predict else 1,
        planar=samples > 1 and draw(st.booleans()),
        tile=draw(st.none() | st.tuples(st.sampled_from((16, 32)), st.sampled_from((16, 48)))),
        rows_per_strip=draw(st.none() | st.integers(1, 50)),
        alpha=int(samples == 4),
        directory_first=draw(st.booleans()),
    )


@unchanging
@given(layouts())
def test_a_tiff_of_any_layout_gives_the_numbers_that_were_written(drawn: tuple[np.ndarray, Layout]) -> None:
    image, layout = drawn
    found = read_tiff(write(image, layout))
    assert found.dtype == image.dtype
    shown = image[:, :, 0] if image.shape[2] == 1 else image[:, :, :3]
    np.testing.assert_array_equal(found, shown)


@unchanging
@given(drawn=layouts(), seed=st.integers(0, 2**32))
def test_a_tiff_that_is_hurt_gives_nothing_of_what_was_in_its_place(
    drawn: tuple[np.ndarray, Layout], seed: int
) -> None:
    expect_own_pixels_or_a_reason(mutated(write(*drawn), random.Random(seed))[0])


@unchanging
@given(data=st.sampled_from([png(20, 20), png(9, 30, channels=2), JPEG, WEBP]), seed=st.integers(0, 2**32))
def test_an_image_that_is_hurt_gives_nothing_of_what_was_in_its_place(data: bytes, seed: int) -> None:
    expect_own_pixels_or_a_reason(mutated(data, random.Random(seed))[0])


@unchanging
@given(
    image=npst.arrays(np.uint8, (7, 5, 4)),
    tags=st.dictionaries(
        st.sampled_from((256, 257, 258, 259, 262, 277, 278, 284, 317, 322, 323, 338, 339)),
        st.integers(0, 8) | st.sampled_from((16, 32, 64, 255, 32_773, 32_946, 65_535)),
    ),
    tile=st.none() | st.just((16, 16)),
)
def test_any_fields_together_are_read_or_refused(
    image: np.ndarray, tags: dict[int, int], tile: tuple[int, int] | None
) -> None:
    more = [Entry(tag, SHORT, (value,)) for tag, value in tags.items()]
    expect_own_pixels_or_a_reason(write(image[:, :, :3], Layout(tile=tile), more=more))


@pytest.mark.parametrize(
    ("head", "read"),
    [
        *((signature, read_tiff) for signature in TIFF_SIGNATURES),
        (PNG_SIGNATURE, read_png_header),
        (b"\xff\xd8\xff", read_jpeg_header),
        (b"RIFF\x99\0\0\0WEBPVP8", read_webp_header),
    ],
)
@unchanging
@given(rest=st.binary(max_size=200) | st.lists(st.sampled_from((0, 1, 4, 8, 255)), max_size=99).map(bytes))
def test_any_bytes_behind_a_signature_are_a_header_or_refused(
    head: bytes, read: Callable[[bytes], object], rest: bytes
) -> None:
    failure = None
    try:
        read(head + rest)
    except SliceError as error:
        failure = error.failure
    assert failure is None or failure.stage in documented_codes()[failure.code]


def expect_own_pixels_or_a_reason(data: bytes) -> None:
    """Decode into two slots that held different things: both hold the same then, or both calls say why."""
    assume(data)
    slots = [np.full((256, 256, 3), value, np.uint8) for value in (0, 123)]
    ends: list[tuple[int, int] | Failure] = []
    for slot in slots:
        try:
            ends.append(decode_slice(data, slot))
        except SliceError as error:
            ends.append(error.failure)
    assert ends[0] == ends[1]
    if isinstance(ends[0], Failure):
        assert ends[0].code not in OURS
        assert ends[0].stage in documented_codes()[ends[0].code]
    else:
        np.testing.assert_array_equal(*slots)
