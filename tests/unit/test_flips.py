from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from engine.bundle import Bundle, Model
from engine.cascade import Cascade, OperatingPoint
from engine.errors import UsageError
from engine.flips import PIECE, FlippedRunner, Flips, Mirrors
from engine.runners import open_runner
from engine.runners.base import Images, Outputs, Runner
from tests.tinybundle import make_tiny_bundle, tiny_slices

TURNS: dict[Mirrors, tuple[tuple[int, ...], ...]] = {
    "horizontal": ((), (1,)),
    "all": ((), (1,), (0,), (0, 1)),
}
"""The axes of [256,256,3] that the copies of a slice are flipped along."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def segmenter(bundle: Bundle) -> Iterator[Runner]:
    with open_runner("onnxruntime", bundle, "segmenter", outputs=("mask_probability",)) as runner:
        yield runner


@pytest.fixture(scope="module")
def classifier(bundle: Bundle) -> Iterator[Runner]:
    with open_runner("onnxruntime", bundle, "classifier") as runner:
        yield runner


def mask_of(runner: Runner, images: Images) -> npt.NDArray[np.uint8]:
    found: npt.NDArray[np.uint8] = runner.infer(images)["mask_probability"]
    return found


class Lopsided:
    """Both models in one; what it says of a pixel depends on where that lies."""

    name, version, precision, concurrency = "lopsided", "1", "fp32", 1
    outputs = ("tumor_probability", "mask_probability")

    def __init__(self) -> None:
        self.options = {"batch": 1}
        self.calls: list[int] = []

    def infer(self, images: Images) -> Outputs:
        self.calls.append(len(images))
        weights = np.arange(256) / 255
        seen = images[..., 1] * weights * weights[:, None]
        return {
            "tumor_probability": np.float32(seen.mean(axis=(1, 2)) / 255),
            "mask_probability": (seen + 0.5).astype(np.uint8),
        }

    def __enter__(self) -> Lopsided:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append(-1)


@pytest.mark.parametrize("mirrors", ["horizontal", "all"])
def test_a_mask_is_the_mean_over_the_copies_turned_back(mirrors: Mirrors) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 256, 256, 3)).astype(np.uint8)
    lopsided = Lopsided()
    found = mask_of(FlippedRunner(lopsided, "segmenter", mirrors), images)  # type: ignore[arg-type]
    for image, mask in zip(images, found, strict=True):
        copies = [np.flip(image, axes)[None] for axes in TURNS[mirrors]]
        answers = [
            np.flip(lopsided.infer(copy)["mask_probability"][0], axes)
            for copy, axes in zip(copies, TURNS[mirrors], strict=True)
        ]
        np.testing.assert_array_equal(mask, np.floor(np.mean(answers, axis=0) + 0.5))
    assert found.dtype == np.uint8
    assert len(np.unique(found)) > 50


@pytest.mark.parametrize("mirrors", ["horizontal", "all"])
def test_a_tumour_probability_is_the_mean_over_the_copies(mirrors: Mirrors) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 256, 256, 3)).astype(np.uint8)
    lopsided = Lopsided()
    flipped = FlippedRunner(lopsided, "classifier", mirrors)  # type: ignore[arg-type]
    found = flipped.infer(images)["tumor_probability"]
    for image, probability in zip(images, found, strict=True):
        copies = np.stack([np.flip(image, axes) for axes in TURNS[mirrors]])
        assert probability == pytest.approx(lopsided.infer(copies)["tumor_probability"].mean(), rel=1e-6)
    assert found.dtype == np.float32


def test_the_mean_of_two_answers_a_step_apart_is_the_upper_one() -> None:
    class Apart(Lopsided):
        def infer(self, images: Images) -> Outputs:
            answers = np.zeros((len(images), 256, 256), np.uint8)
            answers[0], answers[1] = 127, 128
            return {"mask_probability": answers}

    runner = FlippedRunner(Apart(), "segmenter", "horizontal")  # type: ignore[arg-type]
    assert mask_of(runner, tiny_slices(1)).min() == OperatingPoint(0.5, 0.5, 1, exact_mask=False).mask_step


def test_a_model_that_knows_no_side_gives_the_same_with_flips_and_without(segmenter: Runner) -> None:
    images = tiny_slices(4)
    flipped = mask_of(FlippedRunner(segmenter, "segmenter", "all"), images).astype(int)
    assert np.abs(flipped - mask_of(segmenter, images)).max() <= 1  # sums of floats in another order


@pytest.mark.parametrize("n", [0, 1, PIECE - 1, PIECE, PIECE + 3])
def test_a_slices_answer_depends_on_no_neighbour(segmenter: Runner, n: int) -> None:
    images = np.random.default_rng(n).integers(0, 256, (n, 256, 256, 3)).astype(np.uint8)
    before = images.copy()
    runner = FlippedRunner(segmenter, "segmenter", "all")
    together = mask_of(runner, images)
    assert together.shape == (n, 256, 256)
    for i in range(0, n, 5):
        np.testing.assert_array_equal(together[i], mask_of(runner, images[i : i + 1])[0])
    np.testing.assert_array_equal(images, before)


def test_the_copies_of_a_large_batch_are_made_a_piece_at_a_time() -> None:
    lopsided = Lopsided()
    FlippedRunner(lopsided, "segmenter", "all").infer(np.zeros((PIECE * 2 + 1, 256, 256, 3), np.uint8))  # type: ignore[arg-type]
    assert lopsided.calls == [4 * PIECE, 4 * PIECE, 4]


def test_the_cascade_cuts_the_mean(bundle: Bundle, classifier: Runner, segmenter: Runner) -> None:
    images = tiny_slices(7)
    valid = np.arange(7) != 3
    point = replace(OperatingPoint.of(bundle), exact_mask=False)
    flips = Flips("all", classifier=True)
    cascade = Cascade(flips.over(classifier, "classifier"), flips.over(segmenter, "segmenter"), point)
    scores = cascade.score(images, valid)
    plain = Cascade(classifier, segmenter, point).score(images, valid)
    assert scores.has_mask.tolist() == plain.has_mask.tolist()
    np.testing.assert_allclose(scores.mask_pixels, plain.mask_pixels, rtol=0.02)
    for i, mask in scores.masks.items():
        assert mask.sum() == scores.mask_pixels[i]
        assert set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize(
    ("flips", "classifier", "segmenter"),
    [(Flips(), 1, 1), (Flips("horizontal"), 1, 2), (Flips("all"), 1, 4), (Flips("all", True), 4, 4)],
)
def test_what_flips_cost_is_known_by_model(flips: Flips, classifier: int, segmenter: int) -> None:
    assert (flips.copies("classifier"), flips.copies("segmenter")) == (classifier, segmenter)


@pytest.mark.parametrize("model", ["classifier", "segmenter"])
def test_without_flips_the_runner_itself_is_used(model: Model, segmenter: Runner) -> None:
    assert Flips().over(segmenter, model) is segmenter


def test_flips_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match="--flips sideways: choose from none, horizontal, all"):
        Flips("sideways")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--flip-classifier flips as --flips says"):
        Flips("none", classifier=True)


def test_a_segmenter_opened_for_masks_cannot_be_averaged(bundle: Bundle) -> None:
    with (
        open_runner("onnxruntime", bundle, "segmenter") as runner,
        pytest.raises(ValueError, match="opened without mask_probability"),
    ):
        Flips("horizontal").over(runner, "segmenter")


def test_a_flipped_runner_says_what_it_is_and_closes_what_it_stands_on(tmp_path: Path) -> None:
    lopsided = Lopsided()
    with FlippedRunner(lopsided, "segmenter", "all") as runner:  # type: ignore[arg-type]
        assert (runner.name, runner.outputs) == ("lopsided", ("mask_probability",))
        assert runner.options == {"batch": 1, "flips": "all"}
    assert lopsided.calls == [-1]
