"""Windows: how values of any range become the 0..255 that the models know, one window for a whole volume."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.sources.volumes import Window

WINDOW_PERCENTILES = (0.5, 99.5)

# Floats beyond this would overflow while they are windowed.
_LARGEST = 1e300
_SHORT = 2
_SAMPLE = 100_000
_PART_VALUES = 2**18


def apply(window: Window, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Map values [n, ...] of any real type to 0..255. NaN counts as 0, infinities are clipped."""
    mapped = np.empty(values.shape, np.uint8)
    for part in _parts(values):
        mapped[part] = _mapped(window, values[part])
    return mapped


def _mapped(window: Window, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    real = _finite(values)
    if window.low == window.high:
        return np.where(real >= window.high, 255, 0).astype(np.uint8)
    # Clipped before it is scaled: a value far outside the window would overflow.
    inside: npt.NDArray[np.float64] = np.clip(real, window.low, window.high) - window.low
    return np.rint(inside / (window.high - window.low) * 255.0).astype(np.uint8)


@dataclass(slots=True)
class Tally:
    """Counts the non-zero finite values of a volume, a plane at a time, for the volume's window.

    Integers of up to 16 bits are counted by value, so that their number costs no memory; others are kept.
    """

    _counts: dict[tuple[str, float, float], npt.NDArray[np.int64]] = field(default_factory=dict)
    _kept: list[npt.NDArray[Any]] = field(default_factory=list)

    def add(self, stored: npt.NDArray[Any], slope: float = 1.0, intercept: float = 0.0) -> None:
        """Count a plane of values `stored * slope + intercept`."""
        if stored.dtype.kind not in "iu" or stored.dtype.itemsize > _SHORT:
            values = stored if (slope, intercept) == (1.0, 0.0) else stored * slope + intercept
            real = _finite(values)  # of which NaN is 0
            self._kept.append(values[(real != 0) & (np.abs(real) < _LARGEST)])
            return
        first, bins = _range(stored.dtype)
        counted = np.bincount(stored.ravel().astype(np.int32) - first, minlength=bins)
        key = (stored.dtype.str[1:], slope, intercept)
        self._counts[key] = self._counts.get(key, np.zeros(bins, np.int64)) + counted

    def window(self) -> Window | None:
        """The 0.5 and 99.5 percentiles; None where no value but zero was seen."""
        if not self._counts:
            kept = np.concatenate(self._kept) if self._kept else np.empty(0)
            if kept.size == 0:
                return None
            low, high = np.percentile(kept.astype(np.float64, copy=False), WINDOW_PERCENTILES)
            return Window(float(low), float(high))
        values, weights = self._weighted()
        if values.size == 0:
            return None
        ends = np.cumsum(weights)
        return Window(*(_percentile(values, ends, percent) for percent in WINDOW_PERCENTILES))

    def distinct(self, at_least: int) -> bool:
        """Whether there are at least so many different values, of those that are not zero."""
        if self._counts:
            return self._weighted()[0].size >= at_least
        sampled = [kept[:: max(1, kept.size // _SAMPLE)] for kept in self._kept]
        if sampled and np.unique(np.concatenate(sampled)).size >= at_least:
            return True
        return bool(self._kept) and np.unique(np.concatenate(self._kept)).size >= at_least

    def _weighted(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """The different values, ascending, and how often each was seen."""
        values: list[npt.NDArray[Any]] = [kept.astype(np.float64) for kept in self._kept]
        weights = [np.ones(kept.size, np.int64) for kept in self._kept]
        for (kind, slope, intercept), counts in self._counts.items():
            seen = np.flatnonzero(counts)
            values.append((seen + _range(np.dtype(kind))[0]) * slope + intercept)
            weights.append(counts[seen])
        every, each = np.concatenate(values), np.concatenate(weights)
        unique, places = np.unique(every[every != 0], return_inverse=True)
        return unique, np.bincount(places, each[every != 0], len(unique)).astype(np.int64)


def window(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Map an image that stands alone to 0..255 by the percentiles of its own non-zero finite values.

    One window serves all channels.
    """
    counted = np.empty(image.size, image.dtype)
    count = 0
    for part in _parts(image):
        values = image[part]
        kept = values[(values != 0) & (np.abs(_finite(values)) < _LARGEST) & ~np.isnan(values)]
        counted[count : count + kept.size] = kept
        count += kept.size
    if count == 0:
        return np.zeros(image.shape, np.uint8)
    return apply(Window(*_percentiles(counted[:count])), image)


def _percentiles(values: npt.NDArray[Any]) -> Iterator[float]:
    """As np.percentile of `values` [n] in float64, without a copy in float64; leaves them in disorder."""
    places = [percent / 100 * (len(values) - 1) for percent in WINDOW_PERCENTILES]
    last = len(values) - 1
    values.partition(sorted({index for place in places for index in (int(place), min(int(place) + 1, last))}))
    for place in places:
        below = int(place)
        lower, upper, share = float(values[below]), float(values[min(below + 1, last)]), place - below
        step = upper - lower
        yield upper - step * (1 - share) if share >= 0.5 else lower + step * share


def _parts(values: npt.NDArray[Any]) -> Iterator[slice]:
    """Cuts along the first axis: float64 copies of a part at a time are small, whatever the image is."""
    rows = max(1, _PART_VALUES // max(1, math.prod(values.shape[1:])))
    return (slice(top, top + rows) for top in range(0, len(values), rows))


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    real = np.clip(values.astype(np.float64), -_LARGEST, _LARGEST)
    real[np.isnan(real)] = 0.0
    return real


def _range(kind: np.dtype[Any]) -> tuple[int, int]:
    """The smallest value of a short integer type, and how many values it has."""
    limits = np.iinfo(kind)
    return int(limits.min), int(limits.max) - int(limits.min) + 1


def _percentile(values: npt.NDArray[np.float64], ends: npt.NDArray[np.int64], percent: float) -> float:
    """As np.percentile, of ascending `values` of which value i fills the places up to `ends[i]`."""
    place = percent / 100 * (int(ends[-1]) - 1)
    below = int(place)
    lower = values[int(np.searchsorted(ends, below, "right"))]
    upper = values[min(int(np.searchsorted(ends, below + 1, "right")), len(values) - 1)]
    return float(lower + (upper - lower) * (place - below))
