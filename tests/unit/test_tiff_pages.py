"""TIFFs of several pages: each page is a slice, pixel for pixel."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.errors import SliceError
from engine.sources.tiff import page_directories, read_tiff
from tests.badfiles import tiff
from tests.volumes import tiff_pages

RNG = np.random.default_rng(3)
PAGES = [
    RNG.integers(0, 256, (9, 7), np.uint8),
    RNG.integers(0, 65_536, (5, 12), np.uint16),
    RNG.integers(0, 256, (8, 8, 3), np.uint8),
    RNG.normal(size=(4, 6)).astype(np.float32),
]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_pages_come_as_they_are_stored(order: str, big: bool) -> None:
    data = tiff_pages(PAGES, order=order, big=big)
    found = page_directories(data)
    assert len(found) == len(PAGES)
    for directory, page in zip(found, PAGES, strict=True):
        assert np.array_equal(read_tiff(data, directory), page)


def test_pages_that_opencv_decodes_are_told_apart(tmp_path: Path) -> None:
    cv2.imwritemulti(str(tmp_path / "lzw.tif"), PAGES[:1] * 2 + [255 - PAGES[0]])
    data = (tmp_path / "lzw.tif").read_bytes()
    images = [read_tiff(data, directory) for directory in page_directories(data)]
    assert [np.array_equal(image, PAGES[0]) for image in images] == [True, True, False]
    assert np.array_equal(images[2], 255 - PAGES[0])


def test_thumbnails_and_transparency_masks_are_no_pages() -> None:
    data = tiff_pages(PAGES, subfile=[1, 0, 4, 2])
    assert [read_tiff(data, each).shape for each in page_directories(data)] == [(5, 12), (4, 6)]


def test_a_file_of_one_page_has_one() -> None:
    assert len(page_directories(tiff(8, 8))) == 1


def test_several_pages_are_refused_where_one_is_expected() -> None:
    with pytest.raises(SliceError) as caught:
        read_tiff(tiff_pages(PAGES))
    assert caught.value.failure.code == "multi_page"


def test_pages_that_go_round_in_a_circle_are_refused() -> None:
    data = bytearray(tiff_pages(PAGES[:1]))
    (first,) = struct.unpack_from("<I", data, 4)
    data[-4:] = struct.pack("<I", first)
    with pytest.raises(SliceError) as caught:
        page_directories(bytes(data))
    assert caught.value.failure.code == "decode"


def test_a_file_that_ends_among_its_pages_is_truncated() -> None:
    data = tiff_pages(PAGES)
    for end in (6, len(data) - 3, len(data) - 60):
        with pytest.raises(SliceError) as caught:
            page_directories(data[:end])
        assert caught.value.failure.code == "truncated"


def test_what_other_programs_write_is_read() -> None:
    image_module = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    first, second = (image_module.fromarray(page) for page in (PAGES[0], PAGES[0][::-1].copy()))
    first.save(file, "TIFF", save_all=True, append_images=[second], compression="tiff_adobe_deflate")
    images = [read_tiff(file.getvalue(), each) for each in page_directories(file.getvalue())]
    assert np.array_equal(images[1], images[0][::-1])
