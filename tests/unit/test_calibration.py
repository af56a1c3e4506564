from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the train extra")

from trainer.calibration import (
    BINS,
    FEWEST_PATIENTS,
    LEAST_GAIN,
    choose_temperature,
    negative_log_likelihood,
    reliability,
    tempered,
)
from trainer.metrics import Booleans, Bootstrap, Floats, Integers

SLICES, PATIENTS = 3000, 10


def drawn(temperature: float, seed: int = 0) -> tuple[Booleans, Floats, Integers]:
    """Slices whose truth was drawn by their logits, and what a network would say that is off by a factor."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, SLICES)
    sick = rng.random(SLICES) < 1 / (1 + np.exp(-logits))
    return sick, 1 / (1 + np.exp(-logits * temperature)), rng.integers(PATIENTS, size=SLICES)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_that_was_put_in_is_found(temperature: float) -> None:
    found = choose_temperature(*drawn(temperature))
    assert found.value == found.fitted == pytest.approx(temperature, rel=0.1)
    assert found.before - found.after > LEAST_GAIN
    assert (found.slices, found.patients) == (SLICES, PATIENTS)


def test_a_network_that_says_the_truth_is_left_as_it_is() -> None:
    found = choose_temperature(*drawn(1.0))
    assert found.fitted == pytest.approx(1, rel=0.1)
    assert found.value == 1.0


def test_what_two_patients_alone_ask_for_is_left_out() -> None:
    # Of two patients in ten the network is far too sure, of the others it says the truth.
    sick, probability, owners = drawn(1.0)
    odd = (owners < 2) & (np.arange(SLICES) % 2 == 0)
    sick[odd] = ~sick[odd]
    found = choose_temperature(sick, probability, owners)
    assert found.before - found.after > LEAST_GAIN
    assert found.gain is not None
    assert found.gain[0] < 0
    assert found.fitted > 1.1
    assert found.value == 1.0


@pytest.mark.parametrize("case", ["few patients", "all sick", "none sick"])
def test_no_temperature_is_fitted_to_what_cannot_bear_one(case: str) -> None:
    sick, probability, owners = drawn(3.0)
    if case == "few patients":
        owners = owners % (FEWEST_PATIENTS - 1)
    else:
        sick = np.full(SLICES, case == "all sick")
    assert choose_temperature(sick, probability, owners).value == 1.0


def test_tempering_divides_logits_and_keeps_the_order() -> None:
    probability = np.array([0.0, 1e-9, 0.1, 0.5, 0.9, 1.0])
    mended = tempered(probability, 2.0)
    assert np.isfinite(mended).all()
    assert (np.diff(mended) >= 0).all()
    assert mended[2] == pytest.approx(1 / (1 + 3))  # odds of 1/9 become their root
    assert mended[3] == 0.5
    assert tempered(probability, 1.0) is probability


def test_the_curve_equals_that_by_hand() -> None:
    probability = np.array([0.05, 0.15, 0.15, 0.95, 1.0])
    sick = np.array([False, True, False, True, True])
    owners = np.array([0, 0, 1, 1, 1])
    found = reliability(sick, probability, owners, Bootstrap.of(2, seed=0, resamples=500))
    assert len(found.bins) == BINS
    assert [each.slices for each in found.bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    second, last = found.bins[1], found.bins[-1]
    assert (second.low, second.high, second.probability, second.tumours) == (0.1, 0.2, 0.15, 0.5)
    assert second.interval == pytest.approx((0, 1))
    assert (last.probability, last.tumours) == (pytest.approx(0.975), 1.0)
    assert found.bins[4].probability is None
    assert found.bins[4].interval is None
    assert found.error.value == pytest.approx((0.05 + 2 * 0.35 + 2 * 0.025) / 5)
    told = [0.95, 0.15, 0.85, 0.95, 1]
    assert found.likelihood.mean == pytest.approx(-np.log(told).mean(), abs=1e-6)


def test_a_probability_of_nought_costs_much_but_not_everything() -> None:
    assert negative_log_likelihood(np.array([True]), np.array([0.0]))[0] == pytest.approx(13.8, abs=0.1)


def test_a_temperature_mends_the_error_that_it_is_for() -> None:
    sick, probability, owners = drawn(2.5)
    bootstrap = Bootstrap.of(PATIENTS, seed=0, resamples=200)
    before = reliability(sick, probability, owners, bootstrap)
    after = reliability(sick, tempered(probability, 2.5), owners, bootstrap)
    assert before.error.value is not None
    assert after.error.value is not None
    assert after.error.value < before.error.value / 3
    assert before.error.interval is not None
    assert after.error.value < before.error.interval[0]
