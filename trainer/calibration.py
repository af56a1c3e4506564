"""Whether tumor_probability means what it says: the reliability curve, its error, and a temperature.

Guo et al. 2017 (arXiv:1706.04599): a network's probabilities are mended by one number, the temperature that
its logits are divided by; the order of the slices, and so the AUC, stays as it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from pydantic import JsonValue

from trainer.metrics import Average, Booleans, Bootstrap, Figure, Floats, Integers, number, ratio

BINS = 10
"""Of equal width, as in Guo et al."""
SUREST = 1e-6
"""results.csv has six digits: a probability nearer to 0 or 1 than this is taken as this."""
TEMPERATURES = (0.1, 10.0)
LEAST_GAIN = 0.005
"""Nats a slice that a temperature must save on patients it was not fitted on, or it is left out. The interval
of what it saves, over patients, has to be above 0 too, or a few odd patients would decide for all."""
FEWEST_PATIENTS = 5
"""With fewer no temperature is fitted."""
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Bin:
    """Slices whose probability is in [low, high): their mean probability and the share that has a tumour."""

    low: float
    high: float
    slices: int
    probability: float | None
    tumours: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """The curve, the expected calibration error (its bins' mean distance from the diagonal) and the mean
    negative log likelihood in nats a slice."""

    bins: tuple[Bin, ...]
    error: Figure
    likelihood: Average


@dataclass(frozen=True, slots=True)
class Temperature:
    """What was fitted on `slices` of `patients`, and the nats a slice before it and with it.

    `after` is of patients that were left out of the fit, each in turn, and `gain` the 95% interval over
    patients of what is saved on them. `value` is what the logits are divided by: `fitted` where that saves
    LEAST_GAIN, and surely something, else 1.
    """

    value: float
    fitted: float
    before: float
    after: float
    gain: tuple[float, float] | None
    slices: int
    patients: int

    def record(self) -> dict[str, JsonValue]:
        """As bundle.json keeps it."""
        return {
            **asdict(self),
            "gain": None if self.gain is None else list(self.gain),
            "least_gain": LEAST_GAIN,
        }


def reliability(sick: Booleans, probability: Floats, owners: Integers, bootstrap: Bootstrap) -> Reliability:
    """Hold probabilities [n] against the truth [n]; owners [n] are the numbers of the slices' patients."""
    edges = np.linspace(0, 1, BINS + 1)
    places = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    counts, tumours, sums = (
        np.stack([bootstrap.by_patient(owners, values * (places == i)) for i in range(BINS)], axis=1)
        for values in (np.ones(len(sick)), sick.astype(np.float64), probability)
    )
    shares = ratio(bootstrap.weights @ tumours, bootstrap.weights @ counts)
    whole, sick_whole, sum_whole = (table.sum(axis=0) for table in (counts, tumours, sums))
    bins = tuple(
        Bin(
            low=round(float(edges[i]), 6),
            high=round(float(edges[i + 1]), 6),
            slices=int(whole[i]),
            probability=number(ratio(sum_whole, whole)[i]),
            tumours=number(ratio(sick_whole, whole)[i]),
            interval=bootstrap.interval(shares[:, i]),
        )
        for i in range(BINS)
    )
    errors = _expected_errors(*(bootstrap.weights @ table for table in (counts, tumours, sums)))
    error = _expected_errors(whole[None], sick_whole[None], sum_whole[None])[0]
    return Reliability(
        bins,
        Figure("slice", len(sick), number(error), bootstrap.interval(errors)),
        bootstrap.average(negative_log_likelihood(sick, probability), owners, "slice"),
    )


def negative_log_likelihood(sick: Booleans, probability: Floats) -> Floats:
    """Nats of each slice: -log of the probability given to what it is."""
    return _nats(sick, _logits(probability))


def choose_temperature(sick: Booleans, probability: Floats, owners: Integers) -> Temperature:
    """Fit one to slices [n], and keep it if it helps patients that it was not fitted on.

    owners [n] are the slices' patients, counted from 0.

    Slices of one kind only, or of fewer than FEWEST_PATIENTS patients, fit none.
    """
    from sklearn.model_selection import LeaveOneGroupOut

    logits = _logits(probability)
    before = float(_nats(sick, logits).mean())
    patients = len(np.unique(owners))
    if patients < FEWEST_PATIENTS or sick.all() or not sick.any():
        return Temperature(1.0, 1.0, before, before, None, len(sick), patients)
    left_out = np.empty(len(sick))
    for others, one in LeaveOneGroupOut().split(logits, sick, owners):
        left_out[one] = _nats(sick[one], logits[one] / _fit(sick[others], logits[others]))
    fitted, after = round(_fit(sick, logits), 4), float(left_out.mean())
    bootstrap = Bootstrap.of(int(owners.max()) + 1, seed=0, resamples=RESAMPLES)
    gain = bootstrap.average(_nats(sick, logits) - left_out, owners, "slice").interval
    helps = before - after >= LEAST_GAIN and gain is not None and gain[0] > 0
    return Temperature(fitted if helps else 1.0, fitted, before, after, gain, len(sick), patients)


def tempered(probability: Floats, temperature: float) -> Floats:
    """The probabilities [n] of a graph whose logits are divided by the temperature."""
    if temperature == 1:
        return probability
    return np.exp(-np.logaddexp(0.0, -_logits(probability) / temperature))


def _fit(sick: Booleans, logits: Floats) -> float:
    """1 / the one weight of a logistic regression without intercept or penalty."""
    from sklearn.linear_model import LogisticRegression

    weight = LogisticRegression(C=np.inf, fit_intercept=False).fit(logits[:, None], sick).coef_[0, 0]
    low, high = TEMPERATURES
    return float(np.clip(1 / weight, low, high)) if weight > 0 else high


def _nats(sick: Booleans, logits: Floats) -> Floats:
    return np.logaddexp(0.0, np.where(sick, -logits, logits))


def _logits(probability: Floats) -> Floats:
    clipped = np.clip(probability, SUREST, 1 - SUREST)
    return np.log(clipped) - np.log1p(-clipped)


def _expected_errors(counts: Floats, tumours: Floats, sums: Floats) -> Floats:
    """[samples] from tables [samples, bins]: |tumours - sum of probabilities| of bins, over all slices."""
    return ratio(np.abs(tumours - sums).sum(axis=1), counts.sum(axis=1))
