"""A scored block becomes files and rows: values, names, what is written before what, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from engine.cascade import Scores
from engine.errors import Failure, MachineError
from engine.ledger import SliceRow
from engine.outputs.overlays import OUTLINE_RGB
from engine.outputs.pseudonyms import Pseudonyms
from engine.outputs.rle import decode
from engine.ring import DecodedBlock, DecodedSlice
from engine.rows import RowWriter
from engine.sources.discovery import SourceFile, Unlisted


def source(name: bytes = b"p/a.tif") -> SourceFile:
    shown = name.decode("utf-8", "backslashreplace")
    return SourceFile(b"data/" + name, f"data/{shown}", "data/p", name, b"\1", 7, 9)


def decoded(
    name: bytes = b"p/a.tif", height: int = 256, width: int = 256, failure: Failure | None = None
) -> DecodedSlice:
    return DecodedSlice(source(name), 0, height, width, failure)


def square(top: int, left: int, side: int) -> npt.NDArray[np.uint8]:
    mask = np.zeros((256, 256), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def write(
    writer: RowWriter, slices: list[DecodedSlice], masks: dict[int, npt.NDArray[np.uint8]]
) -> list[SliceRow]:
    n = len(slices)
    block = DecodedBlock(3, np.full((n + 2, 256, 256, 3), 40, np.uint8), tuple(slices))
    flags = np.array([position in masks for position in range(n)])
    pixels = np.array([masks[i].sum() if i in masks else 0 for i in range(n)], np.int32)
    return writer.write_block(block, Scores(np.full(n, 0.75, np.float32), flags, flags, pixels, masks))


def test_pixels_fraction_and_box_are_those_of_the_mask(tmp_path: Path) -> None:
    (row,) = write(RowWriter(tmp_path, True, False), [decoded()], {0: square(30, 50, 20)})
    assert (row.status, row.has_mask, row.mask_path) == ("ok", 1, "masks/p/a.tif_mask.png")
    assert (row.mask_pixels, row.mask_fraction) == (400, 400 / 65_536)
    assert (row.bbox_x, row.bbox_y, row.bbox_w, row.bbox_h) == (50, 30, 20, 20)
    assert (row.image_path, row.volume, row.slice) == ("data/p/a.tif", "data/p", 0)
    assert (row.order, row.size, row.mtime_ns, row.tumor_probability) == (b"\1", 7, 9, 0.75)
    image = cv2.imread(str(tmp_path / row.mask_path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(image, square(30, 50, 20) * 255)


def test_a_mask_is_counted_and_written_at_the_sources_size(tmp_path: Path) -> None:
    # 512 wide and 256 high: at 256x256 the slice fills the rows 64 to 191, at half its size.
    (row,) = write(
        RowWriter(tmp_path, True, False), [decoded(height=256, width=512)], {0: square(74, 20, 10)}
    )
    assert (row.bbox_x, row.bbox_y, row.bbox_w, row.bbox_h) == (40, 20, 20, 20)
    assert row.mask_pixels == 400
    assert row.mask_fraction == 400 / (256 * 512)
    image = cv2.imread(str(tmp_path / row.mask_path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    assert image.shape == (256, 512)
    assert np.count_nonzero(image) == 400


def test_without_a_mask_nothing_is_written_and_the_numbers_are_zero(tmp_path: Path) -> None:
    (row,) = write(RowWriter(tmp_path, True, True), [decoded()], {})
    assert (row.status, row.has_mask, row.mask_path) == ("ok", 0, "")
    assert (row.mask_pixels, row.mask_fraction, row.bbox_x, row.bbox_h) == (0, 0.0, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_masks_none_counts_and_writes_no_file(tmp_path: Path) -> None:
    (row,) = write(RowWriter(tmp_path, False, False), [decoded()], {0: square(0, 0, 3)})
    assert (row.has_mask, row.mask_pixels, row.mask_path) == (1, 9, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("height", "width"), [(256, 256), (40, 120), (700, 500), (1, 1)])
def test_an_overlay_has_the_sources_size_and_the_outline(tmp_path: Path, height: int, width: int) -> None:
    write(RowWriter(tmp_path, False, True), [decoded(height=height, width=width)], {0: square(90, 90, 80)})
    image = cv2.imread(str(tmp_path / "overlays" / "p" / "a.tif_overlay.png"))
    assert image is not None
    assert image.shape == (height, width, 3)
    assert (image == OUTLINE_RGB[::-1]).all(axis=2).any()


def test_a_failed_slice_is_quarantined_where_it_stands_and_its_neighbours_are_scored(tmp_path: Path) -> None:
    failure = Failure("decode", "truncated", "ends early", transient=True)
    slices = [decoded(b"a.tif"), decoded(b"b.tif", 0, 0, failure), decoded(b"c.tif")]
    rows = write(RowWriter(tmp_path, True, False), slices, {2: square(5, 5, 5)})
    assert [row.status for row in rows] == ["ok", "quarantined", "ok"]
    assert (rows[1].stage, rows[1].code, rows[1].message) == ("decode", "truncated", "ends early")
    assert rows[1].transient
    assert (rows[1].tumor_probability, rows[1].has_mask, rows[1].size) == (None, None, 7)
    assert (tmp_path / rows[2].mask_path).is_file()


def test_a_name_that_is_no_utf8_is_written_as_it_is_and_shown_escaped(tmp_path: Path) -> None:
    (row,) = write(RowWriter(tmp_path, True, False), [decoded(b"p/\xff.tif")], {0: square(0, 0, 9)})
    assert row.mask_path == "masks/p/\\xff.tif_mask.png"
    assert os.path.exists(os.fsencode(tmp_path) + b"/masks/p/\xff.tif_mask.png")  # noqa: PTH110


@pytest.mark.parametrize("length", [247, 244])
def test_a_name_too_long_for_a_mask_is_quarantined_and_leaves_no_file(tmp_path: Path, length: int) -> None:
    # 255 bytes are the most: with "_mask.png" 247 is too long, with "_overlay.png" 244 is already.
    (row,) = write(RowWriter(tmp_path, True, True), [decoded(b"n" * length)], {0: square(0, 0, 9)})
    assert (row.status, row.stage, row.code) == ("quarantined", "write", "name")
    assert "too long" in row.message
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_mask_whose_folder_is_a_file_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "p").write_bytes(b"")
    (row,) = write(RowWriter(tmp_path, True, False), [decoded()], {0: square(0, 0, 9)})
    assert (row.status, row.code) == ("quarantined", "name")


def test_a_slice_without_a_mask_keeps_none_of_an_earlier_call(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path, True, True, tidy=True)
    names = [b"p/a.tif", b"p/b.tif", b"p/c.tif"]
    write(writer, [decoded(name) for name in names], dict.fromkeys(range(3), square(5, 5, 5)))
    failed = decoded(names[2], 0, 0, Failure("decode", "truncated", "ends early"))
    write(writer, [decoded(names[0]), decoded(names[1]), failed], {1: square(9, 9, 9)})
    left = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert left == ["b.tif_mask.png", "b.tif_overlay.png"]


def test_an_output_that_takes_no_file_at_all_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot be written"):
        write(RowWriter(Path("/proc/self"), True, False), [decoded()], {0: square(0, 0, 9)})


@pytest.mark.parametrize(
    ("image_path", "volume"),
    [("data/p/loop", "data/p"), ("alone.tif", "."), ("/top.tif", "/"), ("./=1", ".")],
)
def test_what_could_not_be_looked_into_has_its_folder_for_a_volume(image_path: str, volume: str) -> None:
    failure = Failure("discover", "link_loop", "a link to a folder that holds it")
    row = RowWriter(Path("out"), True, False).unlisted_row(Unlisted(image_path, b"\2", failure))
    assert (row.volume, row.image_path, row.status, row.order) == (volume, image_path, "quarantined", b"\2")
    assert (row.stage, row.code) == ("discover", "link_loop")


def test_a_row_holds_its_mask_as_run_lengths_whatever_is_written(tmp_path: Path) -> None:
    slices = [decoded(b"a.tif", height=100, width=256), decoded(b"b.tif")]
    rows = write(RowWriter(tmp_path, False, False), slices, {0: square(90, 90, 30)})
    assert rows[1].mask_rle == ""
    mask = decode(rows[0].mask_rle)
    assert mask.shape == (100, 256)
    np.testing.assert_array_equal(mask, square(90, 90, 30)[78:178])


def test_probabilities_are_written_at_the_sources_size_for_what_reached_the_segmenter(tmp_path: Path) -> None:
    # 512 wide and 256 high: at 256x256 the slice fills the rows 64 to 191, at half its size.
    slices = [decoded(b"a.tif", height=256, width=512), decoded(b"b.tif")]
    block = DecodedBlock(0, np.zeros((2, 256, 256, 3), np.uint8), tuple(slices))
    ramp = np.arange(65_536, dtype=np.uint32).reshape(256, 256).astype(np.uint8)
    none, both = np.zeros(2, bool), np.full(2, 0.5, np.float32)
    scores = Scores(both, np.array([True, False]), none, np.zeros(2, np.int32), {}, {0: ramp})
    writer = RowWriter(tmp_path, True, False, probabilities=True)
    first, second = writer.write_block(block, scores)
    assert (first.has_mask, first.mask_path) == (0, "")
    assert (first.probability_path, second.probability_path) == ("probabilities/a.tif_probability.png", "")
    image = cv2.imread(str(tmp_path / first.probability_path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(image, ramp[64:192].repeat(2, axis=0).repeat(2, axis=1))
    assert [path.name for path in tmp_path.rglob("*.png")] == ["a.tif_probability.png"]


def test_a_slice_that_ends_at_the_gate_keeps_no_probabilities_of_an_earlier_call(tmp_path: Path) -> None:
    (tmp_path / "probabilities" / "p").mkdir(parents=True)
    (tmp_path / "probabilities" / "p" / "a.tif_probability.png").write_bytes(b"old")
    write(RowWriter(tmp_path, True, False, probabilities=True, tidy=True), [decoded()], {0: square(5, 5, 5)})
    assert [path.name for path in tmp_path.rglob("*.png")] == ["a.tif_mask.png"]


def test_with_pseudonyms_no_file_is_named_after_its_slice(tmp_path: Path) -> None:
    names = Pseudonyms(b"k" * 32)
    writer = RowWriter(tmp_path, True, True, pseudonyms=names)
    (row,) = write(writer, [decoded(b"jane/a.tif")], {0: square(5, 5, 5)})
    stem = names.of_stem(b"jane/a.tif").decode()
    assert (row.stem.decode(), row.mask_path) == (stem, f"masks/{stem}_mask.png")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert found == [f"masks/{stem}_mask.png", f"overlays/{stem}_overlay.png"]
    assert row.image_path == "data/jane/a.tif"  # the ledger is private
