"""PNGs of masks: what any reader makes of them is the mask, whatever it looks like."""

from __future__ import annotations

import io
import zlib

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from engine.outputs.mask_png import encode_mask

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def by_opencv(data: bytes) -> npt.NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image.astype(np.uint8, copy=False)


def chunks(data: bytes) -> dict[bytes, bytes]:
    found, at = {}, 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert int.from_bytes(data[at + 8 + length : at + 12 + length], "big") == zlib.crc32(kind + body)
        found[kind] = body
        at += 12 + length
    return found


@given(arrays.arrays(np.uint8, SHAPES, elements=st.integers(0, 1)))
def test_any_mask_comes_back(mask: npt.NDArray[np.uint8]) -> None:
    data = encode_mask(mask)
    np.testing.assert_array_equal(by_opencv(data), mask * 255)
    # The standard library checks the whole stream's checksum, which readers of pictures may not.
    rows = np.frombuffer(zlib.decompress(chunks(data)[b"IDAT"]), np.uint8).reshape(len(mask), -1)
    assert not rows[:, 0].any()
    np.testing.assert_array_equal(rows[:, 1:], mask * 255)


@pytest.mark.parametrize("rows", [slice(0), slice(0, 1), slice(-1, None), slice(100, 140), slice(None)])
def test_blank_rows_may_be_anywhere(rows: slice) -> None:
    mask = np.zeros((256, 200), np.uint8)
    mask[rows, 30:50] = 1
    np.testing.assert_array_equal(by_opencv(encode_mask(mask)), mask * 255)


def test_other_readers_see_a_grey_picture_of_8_bits() -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[20:30, 10:20] = 1
    image = Image.open(io.BytesIO(encode_mask(mask)))
    assert (image.mode, image.size) == ("L", (80, 60))
    np.testing.assert_array_equal(np.asarray(image), mask * 255)


def test_the_largest_mask_comes_back() -> None:
    mask = np.zeros((70_000, 60), np.uint8)  # its blank rows are more bytes than a checksum's base
    mask[66_000:66_100, 5:50] = 1
    np.testing.assert_array_equal(by_opencv(encode_mask(mask)), mask * 255)


def test_a_lesion_takes_a_few_hundred_bytes() -> None:
    mask = np.zeros((256, 256), np.uint8)
    cv2.ellipse(mask, (120, 130), (30, 22), 20, 0, 360, 1, -1)
    assert len(encode_mask(mask)) < 500
