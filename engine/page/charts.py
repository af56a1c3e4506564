"""Where the bars and ticks of the page's charts lie; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

WIDTH: Final = 480
_LEFT: Final = 44
_RIGHT: Final = 18
_TOP: Final = 24
_APART: Final = 17
"""What two ticks need between them."""
_BINS: Final = 40
_MOST_TICKS: Final = 9
_DECADES: Final = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)

Kind = Literal["with", "without"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar in the chart's pixels, and what it says."""

    kind: Kind
    x: float
    y: float
    width: float
    height: float
    count: int
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, and its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars that rise from `base` (and, of the kind "without", hang from it) between `left` and `right`."""

    height: int
    base: float
    bars: Sequence[Bar]
    across: Sequence[Tick]
    up: Sequence[Tick]
    gate: Tick | None = None
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    width: int = WIDTH

    @property
    def floor(self) -> float:
        """Where the axis' texts stand."""
        return self.height - 8.0


def probabilities(marked: Sequence[float], others: Sequence[float], gate: float | None) -> Chart:
    """Tumour probabilities in bins of equal width: those of `marked` slices upwards, of `others` downwards.

    Counts stand on a logarithmic scale: most slices of a run crowd at one end.
    """
    height, base = 230, 112.0
    reach = base - _TOP
    above, below = _binned(marked), _binned(others)
    most = max(*above, *below, 1)
    span = (WIDTH - _RIGHT - _LEFT) / _BINS
    bars = []
    for n in range(_BINS):
        edges = f"{n / _BINS:g}", f"{(n + 1) / _BINS:g}"
        x, width = _LEFT + n * span + 0.6, span - 1.2
        if above[n]:
            tall = reach * _scaled(above[n], most)
            bars.append(Bar("with", x, base - tall, width, tall, above[n], *edges))
        if below[n]:
            tall = reach * _scaled(below[n], most)
            bars.append(Bar("without", x, base, width, tall, below[n], *edges))
    steps = [0]
    for count in _DECADES:
        if count <= most and reach * (_scaled(count, most) - _scaled(steps[-1], most)) >= _APART:
            steps.append(count)
    up = [Tick(base - reach * _scaled(count, most), _short(count)) for count in steps[1:]]
    down = [Tick(base + reach * _scaled(count, most), _short(count)) for count in steps[1:]]
    across = [Tick(_at(value), f"{value:g}") for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    line = None if gate is None else Tick(_at(gate), f"gate {gate:.3g}")
    return Chart(height, base, bars, across, [*up, Tick(base, "0"), *down], line)


def sizes(pixels: Sequence[int]) -> Chart | None:
    """Findings by the pixels of their masks; each bin reaches to twice its beginning. None without any."""
    if not pixels:
        return None
    height, base = 230, 200.0
    first, last = (min(pixels).bit_length() - 1, max(pixels).bit_length() - 1)
    counts = [0] * (last - first + 1)
    for each in pixels:
        counts[each.bit_length() - 1 - first] += 1
    most = max(counts)
    span = (WIDTH - _RIGHT - _LEFT) / len(counts)
    reach = base - _TOP
    bars = [
        Bar("with", _LEFT + n * span + gap, base - reach * count / most, span - 2 * gap, reach * count / most,
            count, f"{2 ** (first + n):,}", f"{2 ** (first + n + 1) - 1:,}")
        for n, count in enumerate(counts) for gap in (min(3.0, span / 8),) if count
    ]  # fmt: skip
    every = 1 if len(counts) < _MOST_TICKS else 2
    across = [Tick(_LEFT + n * span, _binary(2 ** (first + n))) for n in range(0, len(counts) + 1, every)]
    up = [Tick(base - reach * count / most, _short(count)) for count in _round_steps(most)]
    return Chart(height, base, bars, across, up)


def _binned(values: Sequence[float]) -> list[int]:
    counts = [0] * _BINS
    for value in values:
        counts[min(int(value * _BINS), _BINS - 1)] += 1
    return counts


def _scaled(count: int, most: int) -> float:
    """0..1; the logarithm of one more, so that a single slice is seen."""
    return math.log1p(count) / math.log1p(most)


def _at(probability: float) -> float:
    return _LEFT + probability * (WIDTH - _RIGHT - _LEFT)


def _round_steps(most: int) -> list[int]:
    """0 and up to four round counts up to `most`."""
    rough = most / 4
    power = 10 ** math.floor(math.log10(rough)) if rough >= 1 else 1
    step = next(int(power * nice) for nice in (1, 2, 5, 10) if power * nice >= rough)
    return list(range(0, most + 1, step))


def _short(count: int) -> str:
    """1 to 999, 1k to 999k, 1M."""
    for power, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= power:
            return f"{count / power:g}{unit}"
    return str(count)


def _binary(count: int) -> str:
    """A power of two; 2k is 2,048."""
    return f"{count // 1024}k" if count >= 1024 else str(count)
