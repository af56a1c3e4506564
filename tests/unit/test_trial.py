"""Two cascades on slices in files: what is read, what is compared, what makes parity fail."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from engine.bundle import Bundle
from engine.cascade import Cascade, OperatingPoint
from engine.errors import Failure, SliceError, TumorscanError, UsageError
from engine.parity import CPU_LIMITS, standing
from engine.trial import BLOCK, Block, open_cascade, read_slices, read_truth, trial
from tests.badfiles import png, tiff, write_bad_files
from tests.runs import write_slices
from tests.tinybundle import make_tiny_bundle, tiny_slice, tiny_slices


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cascade(bundle: Bundle) -> Iterator[Cascade]:
    with open_cascade(bundle, "onnxruntime", "fp32", OperatingPoint.of(bundle)) as cascade:
        yield cascade


def refuse(path: str, failure: Failure) -> None:
    raise AssertionError(f"{path}: {failure}")


def grey(mask: npt.NDArray[np.uint8]) -> bytes:
    height, width = mask.shape
    return tiff(width, height, channels=1, pixels=mask.tobytes())


def write_truth(slices: list[Path]) -> None:
    """What is bright in each slice, beside it."""
    for path in slices:
        number = int(path.stem.rpartition("_")[2])
        bright = tiny_slice(number, lesion=number % 3 != 1)[..., 1] >= 220
        path.with_name(f"{path.stem}_mask.tif").write_bytes(grey(bright.astype(np.uint8) * 255))


# Reading


def test_slices_come_in_blocks_in_the_order_of_score(tmp_path: Path) -> None:
    write_slices(tmp_path, BLOCK + 3, patients=1)
    blocks = list(read_slices([str(tmp_path)], on_bad=refuse))
    assert [len(block.images) for block in blocks] == [BLOCK, 3]
    assert blocks[0].truth is None
    images = np.concatenate([block.images for block in blocks])
    np.testing.assert_array_equal(images, tiny_slices(BLOCK + 3))


def test_a_limit_takes_the_first_slices_only(tmp_path: Path) -> None:
    write_slices(tmp_path, 6, patients=1)
    (block,) = read_slices([str(tmp_path)], limit=4, on_bad=refuse)
    np.testing.assert_array_equal(block.images, tiny_slices(4))


def test_a_list_is_read_in_its_own_order(tmp_path: Path) -> None:
    paths = write_slices(tmp_path, 3)
    (block,) = read_slices((), map(os.fsencode, reversed(paths)), on_bad=refuse)
    np.testing.assert_array_equal(block.images, tiny_slices(3)[::-1])


def test_wrong_input_is_refused_as_score_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        list(read_slices([str(tmp_path / "nowhere")], on_bad=refuse))


def test_bad_files_are_left_out_and_told_of(tmp_path: Path) -> None:
    files = write_bad_files(tmp_path / "bad")
    told: list[str] = []
    blocks = list(
        read_slices([str(tmp_path / "bad")], on_bad=lambda path, failure: told.append(failure.code))
    )
    assert sorted(told) == sorted(file.code for file in files if file.code is not None)
    assert sum(len(block.images) for block in blocks) == sum(file.code is None for file in files)


# Truth


def test_truth_lies_beside_its_slice_and_belongs_to_its_folder(tmp_path: Path) -> None:
    paths = write_slices(tmp_path, 5, patients=2)
    write_truth(paths)
    (block,) = read_slices([str(tmp_path)], truth=True, on_bad=refuse)
    assert block.truth is not None
    assert block.truth.volumes == [f"{tmp_path}/p{p}" for p in (0, 0, 0, 1, 1)]
    for image, mask in zip(block.images, block.truth.masks, strict=True):
        np.testing.assert_array_equal(mask, image[..., 1] >= 220)


def test_a_slice_without_truth_beside_it_is_compared_all_the_same(tmp_path: Path) -> None:
    paths = write_slices(tmp_path, 3, patients=1)
    write_truth(paths[:1])
    (block,) = read_slices([str(tmp_path)], truth=True, on_bad=refuse)
    assert block.truth is not None
    assert block.truth.volumes == [f"{tmp_path}/p0", None, None]
    assert len(block.images) == 3


def test_truth_that_cannot_be_read_is_told_of_and_not_known(tmp_path: Path) -> None:
    (path,) = write_slices(tmp_path, 1)
    path.with_name("s_0_mask.tif").write_bytes(b"no mask")
    told: list[tuple[str, str]] = []
    (block,) = read_slices(
        [str(tmp_path)], truth=True, on_bad=lambda path, failure: told.append((path, failure.code))
    )
    assert block.truth is not None
    assert block.truth.volumes == [None]
    assert told == [(str(path.with_name("s_0_mask.tif")), "not_an_image")]


@pytest.mark.parametrize("name", ["x_mask.tif", "x_mask.tiff", "x_mask.png"])
def test_truth_may_have_another_ending_than_its_slice(tmp_path: Path, name: str) -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[9:20, 30:70] = 255
    (tmp_path / "x.PNG").write_bytes(png(256, 256))
    data = png(256, 256, channels=1, pixels=mask.tobytes()) if name.endswith("png") else grey(mask)
    (tmp_path / name).write_bytes(data)
    (block,) = read_slices([str(tmp_path)], truth=True, on_bad=refuse)
    assert block.truth is not None
    np.testing.assert_array_equal(block.truth.masks[0], mask > 0)


def test_any_channel_but_alpha_is_tumour(tmp_path: Path) -> None:
    pixels = np.zeros((256, 256, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[5, 7, 2] = 1
    (tmp_path / "x_mask.png").write_bytes(png(256, 256, channels=4, pixels=pixels.tobytes()))
    assert np.argwhere(read_truth(os.fsencode(tmp_path / "x_mask.png"))).tolist() == [[5, 7]]


@pytest.mark.parametrize("data", [b"", b"GIF89a", png(64, 64, channels=1)[:-30]])
def test_a_file_that_is_no_mask_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x_mask.png").write_bytes(data)
    with pytest.raises(SliceError):
        read_truth(os.fsencode(tmp_path / "x_mask.png"))


@pytest.mark.parametrize("shape", [(128, 128), (400, 300), (256, 256), (31, 90)])
def test_truth_is_placed_in_the_square_as_training_places_it(tmp_path: Path, shape: tuple[int, int]) -> None:
    loader = pytest.importorskip("trainer.loader", reason="needs the train extra")
    rng = np.random.default_rng(3)
    mask = cv2.resize(rng.integers(0, 2, (9, 9), np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST)
    (tmp_path / "x_mask.tif").write_bytes(grey(np.asarray(mask, np.uint8)))
    (tmp_path / "x.tif").write_bytes(tiff(shape[1], shape[0]))
    frame = pd.DataFrame(
        {"image_path": [str(tmp_path / "x.tif")], "mask_path": [str(tmp_path / "x_mask.tif")], "mask": [1]}
    )
    images, masks = loader.SliceBatches(frame, target="mask")[0]
    (block,) = read_slices([str(tmp_path)], truth=True, on_bad=refuse)
    assert block.truth is not None
    np.testing.assert_array_equal(block.truth.masks, masks[..., 0])
    np.testing.assert_array_equal(block.images, images)


# Comparing


def test_a_cascade_stands_for_itself(tmp_path: Path, cascade: Cascade) -> None:
    write_truth(write_slices(tmp_path, 15))
    report = trial(cascade, cascade, read_slices([str(tmp_path)], truth=True, on_bad=refuse))
    assert (report.slices, report.flips, report.masks_both, report.volumes) == (15, 0, 10, 4)
    assert (report.probability_error_max, report.mask_dice, report.dice_fall) == (0, 1, 0)
    assert report.dice_reference is not None
    assert report.dice_reference > 0.9
    assert standing(report, CPU_LIMITS) == "proven"


def test_another_runtime_stands_for_the_reference(bundle: Bundle, cascade: Cascade) -> None:
    with open_cascade(bundle, "openvino", "fp32", cascade.operating) as other:
        report = trial(cascade, other, [Block(tiny_slices(12))])
    assert standing(report, CPU_LIMITS) == "proven"
    assert report.probability_error_max is not None
    assert report.probability_error_max < 1e-5


def test_few_masks_prove_weakly(cascade: Cascade) -> None:
    report = trial(cascade, cascade, [Block(tiny_slices(4))])
    assert report.masks_both == 3
    assert standing(report, CPU_LIMITS) == "weakly proven"


def test_a_classifier_that_knows_nothing_flips_and_parity_fails(tmp_path: Path, cascade: Cascade) -> None:
    dull = make_tiny_bundle(tmp_path, sharpness=0)
    point = OperatingPoint(gate_threshold=0.6, mask_threshold=0.5, min_pixels=1)
    reference = Cascade(cascade.classifier, cascade.segmenter, point)
    with open_cascade(dull, "onnxruntime", "fp32", point) as other:
        report = trial(reference, other, [Block(tiny_slices(12))])
    assert (report.flips, report.masks_reference, report.masks_other) == (8, 8, 0)
    assert report.broken(CPU_LIMITS) == (
        "has_mask flips on 66.67% of slices (at most 0.50%)",
        "both draw 0 of 8 masks (at least 8)",
    )
    assert standing(report, CPU_LIMITS) == "failed"


def test_without_a_gate_more_masks_are_compared_and_the_gate_is_judged_still(
    tmp_path: Path, cascade: Cascade
) -> None:
    dull = make_tiny_bundle(tmp_path, sharpness=0)
    point = OperatingPoint(gate_threshold=0.6, mask_threshold=0.5, min_pixels=1, gated=False)
    reference = Cascade(cascade.classifier, cascade.segmenter, point)
    with open_cascade(dull, "onnxruntime", "fp32", point) as other:
        report = trial(reference, other, [Block(tiny_slices(12))])
    assert (report.masks_both, report.mask_dice, report.flips) == (8, 1, 8)
    assert report.broken(CPU_LIMITS) == ("has_mask flips on 66.67% of slices (at most 0.50%)",)


@pytest.mark.parametrize("gated", [True, False])
def test_probabilities_that_are_no_numbers_are_a_finding_not_an_error(
    tmp_path: Path, cascade: Cascade, gated: bool
) -> None:
    broken = make_tiny_bundle(tmp_path, sharpness=math.nan)
    point = OperatingPoint.of(broken, gated=gated)
    reference = Cascade(cascade.classifier, cascade.segmenter, point)
    with open_cascade(broken, "onnxruntime", "fp32", point) as other:
        report = trial(reference, other, [Block(tiny_slices(4)), Block(tiny_slices(2))])
    assert (report.slices, report.non_finite, report.probability_error_max) == (6, 6, None)
    assert report.broken(CPU_LIMITS)[0] == "6 probabilities are no numbers (none may be)"


def test_an_error_of_another_kind_is_raised(cascade: Cascade) -> None:
    class Lost(type(cascade.classifier)):  # type: ignore[misc]
        def infer(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
            raise TumorscanError("the device is gone")

    lost = object.__new__(Lost)
    with pytest.raises(TumorscanError, match="the device is gone"):
        trial(cascade, Cascade(lost, cascade.segmenter, cascade.operating), [Block(tiny_slices(1))])
