from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from engine.bundle import Bundle
from engine.cascade import Cascade, OperatingPoint, Scores
from engine.errors import TumorscanError, UsageError
from engine.runners import open_runner
from engine.runners.base import Runner
from tests.tinybundle import make_tiny_bundle, tiny_slices

LESIONS = [True, False, True, True, False, True, True]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cascade(bundle: Bundle) -> Iterator[Cascade]:
    with (
        open_runner("openvino", bundle, "classifier") as classifier,
        open_runner("openvino", bundle, "segmenter") as segmenter,
    ):
        yield Cascade(classifier, segmenter, OperatingPoint.of(bundle))


@pytest.fixture(scope="module")
def by_probability(bundle: Bundle) -> Iterator[Runner]:
    with open_runner("openvino", bundle, "segmenter", outputs=("mask_probability",)) as runner:
        yield runner


def every(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return np.ones(len(images), np.bool_)


def assert_same(one: Scores, two: Scores) -> None:
    for name in ("tumor_probability", "passed", "has_mask", "mask_pixels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), strict=True)
    assert one.masks.keys() == two.masks.keys()
    for i, mask in one.masks.items():
        np.testing.assert_array_equal(mask, two.masks[i])


def test_slices_with_a_lesion_pass_the_gate_and_get_a_mask(cascade: Cascade) -> None:
    images = tiny_slices(7)
    scores = cascade.score(images, every(images))
    assert scores.passed.tolist() == LESIONS
    assert scores.has_mask.tolist() == LESIONS
    assert sorted(scores.masks) == np.flatnonzero(LESIONS).tolist()
    assert scores.mask_pixels.dtype == np.int32
    for i, mask in scores.masks.items():
        assert (mask.dtype, mask.shape, set(np.unique(mask))) == (np.uint8, (256, 256), {0, 1})
        assert mask.sum() == scores.mask_pixels[i]
        assert images[i][mask == 1].min() >= 150


def test_slices_that_did_not_pass_have_no_pixels(cascade: Cascade) -> None:
    images = tiny_slices(7)
    scores = cascade.score(images, every(images))
    assert (scores.mask_pixels > 0).tolist() == LESIONS


def test_a_slice_that_is_not_valid_is_never_scored(cascade: Cascade) -> None:
    images = tiny_slices(7)
    valid = every(images)
    valid[[0, 3, 4]] = False
    scores, whole = cascade.score(images, valid), cascade.score(images, every(images))
    assert np.isnan(scores.tumor_probability[~valid]).all()
    np.testing.assert_array_equal(scores.tumor_probability[valid], whole.tumor_probability[valid])
    np.testing.assert_array_equal(scores.has_mask, whole.has_mask & valid)
    np.testing.assert_array_equal(scores.passed, whole.passed & valid)


def test_a_block_without_a_valid_slice_gives_no_scores(cascade: Cascade) -> None:
    for n in (0, 3):
        images = tiny_slices(3)[:n]
        scores = cascade.score(images, ~every(images))
        assert not scores.passed.any()
        assert scores.masks == {}
        assert len(scores.tumor_probability) == n


def test_a_probability_equal_to_the_threshold_passes(cascade: Cascade) -> None:
    images = tiny_slices(1)
    p = cascade.score(images, every(images)).tumor_probability[0]
    for threshold, passes in ((float(p), True), (float(np.nextafter(p, np.float32(2))), False)):
        point = replace(cascade.operating, gate_threshold=threshold)
        assert replace(cascade, operating=point).score(images, every(images)).passed[0] == passes


def test_without_a_gate_every_valid_slice_is_segmented_and_its_mask_decides(cascade: Cascade) -> None:
    images = tiny_slices(7)
    point = replace(cascade.operating, gate_threshold=1.0, gated=False)
    scores = replace(cascade, operating=point).score(images, every(images))
    assert scores.passed.all()
    assert scores.has_mask.tolist() == LESIONS


@pytest.mark.parametrize("too_many", [0, 1])
def test_a_mask_needs_its_minimum_of_pixels(cascade: Cascade, too_many: int) -> None:
    images = tiny_slices(1)
    pixels = int(cascade.score(images, every(images)).mask_pixels[0])
    point = replace(cascade.operating, min_pixels=pixels + too_many)
    scores = replace(cascade, operating=point).score(images, every(images))
    assert scores.has_mask[0] == (too_many == 0)
    assert scores.masks.keys() == ({0} if too_many == 0 else set())
    assert scores.mask_pixels[0] == pixels


def test_an_empty_mask_is_none_even_where_no_pixel_is_asked_for(cascade: Cascade) -> None:
    images = tiny_slices(2)[1:]
    point = replace(cascade.operating, min_pixels=0, gated=False)
    assert not replace(cascade, operating=point).score(images, every(images)).has_mask[0]


def test_the_probability_cut_at_the_bundles_threshold_is_the_graphs_own_mask(
    cascade: Cascade, by_probability: Runner
) -> None:
    images = tiny_slices(7)
    point = replace(cascade.operating, exact_mask=False)
    assert_same(
        Cascade(cascade.classifier, by_probability, point).score(images, every(images)),
        cascade.score(images, every(images)),
    )


def test_a_higher_mask_threshold_gives_a_smaller_mask(
    bundle: Bundle, cascade: Cascade, by_probability: Runner
) -> None:
    images = tiny_slices(1)
    pixels = []
    for threshold in (0.05, 0.6, 0.9):
        point = OperatingPoint.of(bundle, mask_threshold=threshold)
        scores = Cascade(cascade.classifier, by_probability, point).score(images, every(images))
        pixels.append(int(scores.mask_pixels[0]))
    assert pixels[0] > pixels[1] > pixels[2] > 0


@pytest.mark.parametrize(
    ("threshold", "step"), [(1.0, 255), (0.5, 128), (0.3, 77), (2.5 / 255, 3), (1 / 255, 1), (1e-9, 1)]
)
def test_a_mask_threshold_is_rounded_to_the_nearest_step(threshold: float, step: int) -> None:
    assert OperatingPoint(0.5, threshold, 1, exact_mask=False).mask_step == step


def test_an_operating_point_takes_the_bundles_values_and_the_callers_own(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, gate_threshold=0.25, min_pixels=7)
    assert OperatingPoint.of(bundle) == OperatingPoint(0.25, 0.5, 7, gated=True, exact_mask=True)
    own = OperatingPoint.of(bundle, gate_threshold=0.0, mask_threshold=0.25, gated=False)
    assert own == OperatingPoint(0.0, 0.25, 7, gated=False, exact_mask=False)
    assert OperatingPoint.of(bundle, mask_threshold=0.5).exact_mask


@pytest.mark.parametrize(
    "bad", [{"gate_threshold": -0.1}, {"gate_threshold": math.nan}, {"mask_threshold": 0.0}]
)
def test_a_threshold_out_of_range_is_refused(bundle: Bundle, bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="threshold"):
        OperatingPoint.of(bundle, **bad)


def test_a_segmenter_opened_without_the_needed_output_is_refused(cascade: Cascade, bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="mask_probability"):
        replace(cascade, operating=OperatingPoint.of(bundle, mask_threshold=0.4))


@pytest.mark.parametrize("gated", [True, False])
def test_a_probability_that_is_not_a_number_ends_the_run(
    tmp_path: Path, cascade: Cascade, gated: bool
) -> None:
    broken = make_tiny_bundle(tmp_path, sharpness=math.nan)
    images = tiny_slices(2)
    with open_runner("onnxruntime", broken, "classifier") as classifier:
        point = replace(cascade.operating, gated=gated)
        with pytest.raises(TumorscanError, match=r"not a number \(onnxruntime"):
            Cascade(classifier, cascade.segmenter, point).score(images, every(images))


def test_four_threads_get_what_one_gets(cascade: Cascade) -> None:
    images = tiny_slices(8)
    blocks = [(images[a : a + 3], np.arange(3) != a % 4) for a in range(6)] * 4
    serial = [cascade.score(*block) for block in blocks]
    with ThreadPoolExecutor(4) as pool:
        for one, two in zip(serial, pool.map(lambda block: cascade.score(*block), blocks), strict=True):
            assert_same(one, two)


def test_both_runtimes_decide_alike(bundle: Bundle, cascade: Cascade) -> None:
    images = tiny_slices(7)
    with (
        open_runner("onnxruntime", bundle, "classifier") as classifier,
        open_runner("onnxruntime", bundle, "segmenter") as segmenter,
    ):
        one = Cascade(classifier, segmenter, cascade.operating).score(images, every(images))
    two = cascade.score(images, every(images))
    np.testing.assert_allclose(one.tumor_probability, two.tumor_probability, rtol=0, atol=1e-5)
    assert_same(replace(one, tumor_probability=two.tumor_probability), two)


@pytest.mark.parametrize("mask_threshold", [None, 0.25])
def test_probabilities_are_kept_of_the_slices_that_the_segmenter_saw(
    bundle: Bundle, mask_threshold: float | None
) -> None:
    point = OperatingPoint.of(bundle, mask_threshold=mask_threshold, probabilities=True)
    images = tiny_slices(4)
    with (
        open_runner("onnxruntime", bundle, "classifier", "fp32") as classifier,
        open_runner("onnxruntime", bundle, "segmenter", "fp32", outputs=point.segmenter_outputs) as segmenter,
    ):
        scores = Cascade(classifier, segmenter, point).score(images, np.ones(4, bool))
    assert sorted(scores.probabilities) == np.flatnonzero(scores.passed).tolist()
    for position, mask in scores.masks.items():
        np.testing.assert_array_equal(scores.probabilities[position] >= point.mask_step, mask)
