"""One runner against another on given slices, and the limits within which they count as the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from engine.cascade import Scores

Mask = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Standing = Literal["proven", "weakly proven", "failed"]

ENOUGH_MASKS = 8
"""Masks that both have to draw before their likeness says much of a runner."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that mean per-volume Dice may fall and has_mask may flip, the least mean mask Dice."""

    dice_fall: float
    flip_fraction: float
    mask_dice: float


CPU_LIMITS = Limits(dice_fall=0.002, flip_fraction=0.005, mask_dice=0.98)
FP16_LIMITS = Limits(dice_fall=0.001, flip_fraction=0.002, mask_dice=0.99)


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of n slices: masks uint8 [n,256,256] (not 0: tumour), and the volume of each.

    A slice whose truth is not known has None for its volume; it counts in all but Dice against truth.
    """

    volumes: Sequence[str | None]
    masks: Mask


@dataclass(frozen=True, slots=True)
class Compared:
    """The same n slices scored twice. `valid` bool [n] are those that count.

    `gate` is the gate's threshold where both cascades sent every slice to the segmenter: more masks are then
    compared, while the gate's decisions stay to be judged. A slice flips where has_mask differs with the gate
    or without, and Dice against truth is that of the masks behind the gate.
    """

    valid: Flags
    reference: Scores
    other: Scores
    truth: Truth | None = None
    gate: float | None = None


@dataclass(frozen=True, slots=True)
class ParityReport:
    """How far `other` is from `reference`. None stands for what could not be measured.

    `mask_dice` is the mean over the `masks_both` slices where both give a mask; `dice_reference` and
    `dice_other` are mean per-volume Dice against truth, `dice_fall` what `other` loses. `non_finite` counts
    slices where a probability of either is no number; these are in neither of the probability errors.
    """

    slices: int
    probability_error_max: float | None
    probability_error_mean: float | None
    flips: int
    masks_reference: int
    masks_other: int
    masks_both: int
    mask_dice: float | None
    non_finite: int
    volumes: int
    dice_reference: float | None
    dice_other: float | None

    @property
    def flip_fraction(self) -> float:
        """has_mask flips as a fraction of the slices."""
        return self.flips / self.slices if self.slices else 0.0

    @property
    def dice_fall(self) -> float | None:
        """What mean per-volume Dice loses against the reference; negative where it gains."""
        if self.dice_reference is None or self.dice_other is None:
            return None
        return self.dice_reference - self.dice_other

    def broken(self, limits: Limits) -> tuple[str, ...]:
        """What keeps `other` from standing for `reference`, a clause each; empty where parity holds.

        Judged by all that was measured. Of the masks that the reference draws, both have to draw at least
        ENOUGH_MASKS, or all where there are fewer: among thousands of slices with few masks, one that draws
        none would stay within the limit of flips and have no mask whose Dice could be judged.
        """
        return tuple(self._broken(limits))

    def _broken(self, limits: Limits) -> Iterator[str]:
        if self.slices == 0:
            yield "no slices were compared"
        if self.non_finite:
            yield f"{self.non_finite:,} probabilities are no numbers (none may be)"
        if self.flip_fraction > limits.flip_fraction:
            yield f"has_mask flips on {self.flip_fraction:.2%} of slices (at most {limits.flip_fraction:.2%})"
        if self.masks_both < (least := min(ENOUGH_MASKS, self.masks_reference)):
            yield f"both draw {self.masks_both:,} of {self.masks_reference:,} masks (at least {least})"
        if self.mask_dice is not None and self.mask_dice < limits.mask_dice:
            yield f"mask Dice is {self.mask_dice:.4f} (at least {limits.mask_dice})"
        if self.dice_fall is not None and self.dice_fall > limits.dice_fall:
            yield f"Dice against truth falls by {self.dice_fall:.5f} (at most {limits.dice_fall})"

    def holds(self, limits: Limits) -> bool:
        """Whether `other` may stand for `reference`."""
        return not self.broken(limits)

    def record(self, limits: Limits) -> dict[str, JsonValue]:
        """What bundle.json keeps: every figure, the limits, and how it stands."""
        return {
            **asdict(self),
            "flip_fraction": self.flip_fraction,
            "dice_fall": self.dice_fall,
            "limits": asdict(limits),
            "holds": self.holds(limits),
            "standing": standing(self, limits),
        }


def standing(report: ParityReport, limits: Limits) -> Standing:
    """What the report proves of `other`.

    "weakly proven" holds, but on fewer than ENOUGH_MASKS masks. Those that both draw are counted, as only
    they had their likeness measured; the reference has at least as many.
    """
    if not report.holds(limits):
        return "failed"
    return "proven" if report.masks_both >= ENOUGH_MASKS else "weakly proven"


@dataclass(slots=True)
class Overlap:
    """Pixel counts of two masks, to be summed over the slices of a volume."""

    both: int = 0
    first: int = 0
    second: int = 0

    def add(self, first: Mask | None, second: Mask | None) -> None:
        """Count one slice's masks (not 0: set); None is a mask without a pixel."""
        if first is not None and second is not None:
            self.both += int(np.count_nonzero(np.logical_and(first, second)))
        self.first += 0 if first is None else int(np.count_nonzero(first))
        self.second += 0 if second is None else int(np.count_nonzero(second))

    @property
    def dice(self) -> float:
        """Twice the common pixels over the sum of both; 1 where both are empty."""
        total = self.first + self.second
        return 2 * self.both / total if total else 1.0


def dice(first: Mask, second: Mask) -> float:
    """Dice of two masks of one shape (not 0: set); 1 where both are empty."""
    overlap = Overlap()
    overlap.add(first, second)
    return overlap.dice


@dataclass(slots=True)
class _Tally:
    errors: list[npt.NDArray[np.float64]] = field(default_factory=list)
    slices: int = 0
    non_finite: int = 0
    flips: int = 0
    masks_reference: int = 0
    masks_other: int = 0
    dices: list[float] = field(default_factory=list)
    against_truth: defaultdict[str, tuple[Overlap, Overlap]] = field(
        default_factory=lambda: defaultdict(lambda: (Overlap(), Overlap()))
    )

    def add(self, block: Compared) -> None:
        valid, one, two = block.valid, block.reference, block.other
        self.slices += int(valid.sum())
        self._add_probabilities(one.tumor_probability[valid], two.tumor_probability[valid])
        decided = _decided(one, block.gate), _decided(two, block.gate)
        flipped = (one.has_mask != two.has_mask) | (decided[0] != decided[1])
        self.flips += int(np.count_nonzero(flipped & valid))
        self.masks_reference += int(np.count_nonzero(one.has_mask & valid))
        self.masks_other += int(np.count_nonzero(two.has_mask & valid))
        self.dices += [
            dice(one.masks[i], two.masks[i]) for i in _positions(one.has_mask & two.has_mask & valid)
        ]
        if block.truth is not None:
            self._add_truth(block, block.truth, decided)

    def _add_probabilities(self, one: npt.NDArray[np.float32], two: npt.NDArray[np.float32]) -> None:
        finite = np.isfinite(one) & np.isfinite(two)
        self.non_finite += int(np.count_nonzero(~finite))
        self.errors.append(np.abs(one[finite].astype(np.float64) - two[finite]))

    def _add_truth(self, block: Compared, truth: Truth, decided: tuple[Flags, Flags]) -> None:
        for i in _positions(block.valid):
            volume = truth.volumes[i]
            if volume is None:
                continue
            pairs = zip(self.against_truth[volume], (block.reference, block.other), decided, strict=True)
            for overlap, scores, has_mask in pairs:
                overlap.add(scores.masks[i] if has_mask[i] else None, truth.masks[i])


def _decided(scores: Scores, gate: float | None) -> Flags:
    """has_mask behind the gate, bool [n], where the slices were scored without it."""
    return (
        scores.has_mask if gate is None else scores.has_mask & (scores.tumor_probability >= np.float32(gate))
    )


def _positions(flags: Flags) -> list[int]:
    return [int(i) for i in np.flatnonzero(flags)]


def compare(blocks: Iterable[Compared]) -> ParityReport:
    """Sum up slices scored by two cascades, block by block."""
    tally = _Tally()
    for block in blocks:
        tally.add(block)
    errors = np.concatenate(tally.errors) if tally.errors else np.empty(0)
    volumes = list(tally.against_truth.values())
    return ParityReport(
        slices=tally.slices,
        probability_error_max=float(errors.max()) if errors.size else None,
        probability_error_mean=float(errors.mean()) if errors.size else None,
        flips=tally.flips,
        masks_reference=tally.masks_reference,
        masks_other=tally.masks_other,
        masks_both=len(tally.dices),
        mask_dice=float(np.mean(tally.dices)) if tally.dices else None,
        non_finite=tally.non_finite,
        volumes=len(volumes),
        dice_reference=float(np.mean([first.dice for first, _ in volumes])) if volumes else None,
        dice_other=float(np.mean([second.dice for _, second in volumes])) if volumes else None,
    )
