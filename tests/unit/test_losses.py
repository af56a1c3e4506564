from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

keras = pytest.importorskip("keras", reason="needs the train extra")

from trainer.losses import (  # noqa: E402
    ALPHA,
    FLOOR,
    GAMMA,
    SMOOTH,
    PooledDice,
    focal_tversky,
    tversky,
    tversky_bce,
)

Floats = npt.NDArray[np.float32]


def batch(seed: int = 0) -> tuple[Floats, Floats]:
    """Masks of 0/1 and probabilities, [4,32,32,1]."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((4, 32, 32, 1)) < 0.2).astype(np.float32)
    return truth, rng.random((4, 32, 32, 1), np.float32)


def index_by_hand(truth: Floats, guess: Floats, alpha: float = 0.7) -> float:
    hit = float((truth.astype(np.float64) * guess).sum())
    missed = float((truth * (1.0 - guess.astype(np.float64))).sum())
    false = float(((1.0 - truth) * guess.astype(np.float64)).sum())
    return (hit + 1e-6) / (hit + alpha * missed + (1 - alpha) * false + 1e-6)


def number(tensor: Any) -> float:
    return float(keras.ops.convert_to_numpy(tensor))


def test_the_constants_are_those_of_the_design() -> None:
    assert (ALPHA, GAMMA, SMOOTH, FLOOR) == (0.7, 0.75, 1e-6, 1e-7)


def test_the_tversky_index_is_that_of_the_whole_batch() -> None:
    truth, guess = batch()
    assert number(tversky(truth, guess)) == pytest.approx(index_by_hand(truth, guess), rel=1e-5)
    each = [index_by_hand(truth[i], guess[i]) for i in range(len(truth))]
    truth[0] = 0  # an empty mask among others: a mean of single indices would fall to 3/4 at once
    assert number(tversky(truth, truth)) == pytest.approx(1.0)
    assert np.mean(each) != pytest.approx(index_by_hand(*batch()), rel=1e-5)


def test_the_loss_is_the_index_from_one_to_the_power_of_three_quarters() -> None:
    truth, guess = batch(1)
    expected = (1 - index_by_hand(truth, guess)) ** 0.75
    assert number(focal_tversky()(truth, guess)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("alpha", "weight"), [(0.7, 1.0), (0.5, 0.0), (0.5, 2.5)])
def test_the_mix_is_the_index_from_one_and_the_mean_cross_entropy(alpha: float, weight: float) -> None:
    truth, guess = batch(3)
    guess = np.clip(guess, 0.01, 0.99)
    entropy = -(truth * np.log(guess) + (1 - truth) * np.log(1 - guess)).mean()
    expected = 1 - index_by_hand(truth, guess, alpha) + weight * entropy
    assert number(tversky_bce(alpha, weight)(truth, guess)) == pytest.approx(expected, rel=1e-5)


def test_only_the_mix_tells_few_false_pixels_from_many_where_there_is_no_tumour() -> None:
    truth = np.zeros((2, 16, 16, 1), np.float32)
    few, many = np.full_like(truth, 0.1), np.full_like(truth, 0.9)
    assert number(focal_tversky()(truth, few)) == pytest.approx(
        number(focal_tversky()(truth, many)), abs=1e-5
    )
    assert number(tversky_bce()(truth, many)) > number(tversky_bce()(truth, few)) + 1


def test_pooled_dice_is_that_of_all_batches_together_however_they_are_cut() -> None:
    truth, guess = batch(4)
    mask = guess >= 0.5
    expected = 2 * (truth * mask).sum() / (truth.sum() + mask.sum())
    for cuts in ([0, 4], [0, 1, 4], [0, 1, 2, 3, 4]):
        dice = PooledDice()
        for start, end in pairwise(cuts):
            dice.update_state(truth[start:end], guess[start:end])
        assert number(dice.result()) == pytest.approx(expected, rel=1e-5)
    dice.reset_state()
    assert number(dice.result()) == 1.0


def test_a_missed_pixel_costs_more_than_a_false_one() -> None:
    truth = np.zeros((1, 8, 8, 1), np.float32)
    truth[0, :4] = 1
    missing, adding = truth.copy(), truth.copy()
    missing[0, 0, 0] = 0
    adding[0, 7, 0] = 1
    assert number(tversky(truth, missing)) == pytest.approx(31 / (31 + 0.7), rel=1e-5)
    assert number(tversky(truth, adding)) == pytest.approx(32 / (32 + 0.3), rel=1e-5)


@pytest.mark.parametrize("empty", [False, True])
def test_a_perfect_batch_has_a_loss_of_nearly_nothing_and_a_finite_gradient(empty: bool) -> None:
    tf = pytest.importorskip("tensorflow", reason="gradients are taken with TensorFlow")
    truth = np.zeros((2, 16, 16, 1), np.float32)
    truth[:, 4:8] = 0 if empty else 1
    guess = tf.Variable(truth)
    with tf.GradientTape() as tape:
        loss = focal_tversky()(truth, guess)
    assert 0 <= number(loss) <= 1e-5
    assert np.isfinite(tape.gradient(loss, guess).numpy()).all()


def test_half_precision_is_summed_in_float32() -> None:
    guess = keras.ops.ones((16, 64, 64, 1), dtype="bfloat16")
    truth = keras.ops.ones((16, 64, 64, 1), dtype="uint8")
    loss = focal_tversky()(truth, guess)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert number(tversky(truth, guess)) == pytest.approx(1.0)


def test_a_compiled_model_trains_on_the_loss_and_reports_the_index() -> None:
    truth, guess = batch(2)
    model = keras.Sequential([keras.Input((32, 32, 1)), keras.layers.Conv2D(1, 1, activation="sigmoid")])
    model.compile("sgd", focal_tversky(), metrics=[tversky])
    figures = model.evaluate(guess, truth, verbose=0, return_dict=True)
    probabilities = np.asarray(model.predict(guess, verbose=0))
    assert figures["tversky"] == pytest.approx(index_by_hand(truth, probabilities), rel=1e-4)
    assert figures["loss"] == pytest.approx((1 - figures["tversky"]) ** 0.75, rel=1e-4)
