"""One runner against another on given slices, and the limits within which they count as the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from engine.cascade import Scores

Mask = npt.NDArray[np.uint8]


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
    """What is true of n slices: the volume of each, and its mask uint8 [n,256,256] (not 0: tumour)."""

    volumes: Sequence[str]
    masks: Mask


@dataclass(frozen=True, slots=True)
class Compared:
    """The same n slices scored twice. `valid` bool [n] are those that count."""

    valid: npt.NDArray[np.bool_]
    reference: Scores
    other: Scores
    truth: Truth | None = None


@dataclass(frozen=True, slots=True)
class ParityReport:
    """How far `other` is from `reference`. None stands for what could not be measured.

    `mask_dice` is the mean over the `masks_both` slices where both give a mask; `dice_reference` and
    `dice_other` are mean per-volume Dice against truth, `dice_fall` what `other` loses. `non_finite` counts
    probabilities of either that are no numbers; they stand in no other figure.
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

    def holds(self, limits: Limits) -> bool:
        """Whether `other` may stand for `reference`: judged by all that was measured, never by no slices."""
        return (
            self.slices > 0
            and self.non_finite == 0
            and self.flip_fraction <= limits.flip_fraction
            and (self.mask_dice is None or self.mask_dice >= limits.mask_dice)
            and (self.dice_fall is None or self.dice_fall <= limits.dice_fall)
        )

    def record(self, limits: Limits) -> dict[str, JsonValue]:
        """What bundle.json keeps: every figure, the limits, and whether they hold."""
        return {
            **asdict(self),
            "flip_fraction": self.flip_fraction,
            "dice_fall": self.dice_fall,
            "limits": asdict(limits),
            "holds": self.holds(limits),
        }


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
        self.flips += int(np.count_nonzero((one.has_mask != two.has_mask) & valid))
        self.masks_reference += int(np.count_nonzero(one.has_mask & valid))
        self.masks_other += int(np.count_nonzero(two.has_mask & valid))
        self.dices += [
            dice(one.masks[i], two.masks[i]) for i in _positions(one.has_mask & two.has_mask & valid)
        ]
        if block.truth is not None:
            for i in _positions(valid):
                first, second = self.against_truth[block.truth.volumes[i]]
                first.add(one.masks.get(i), block.truth.masks[i])
                second.add(two.masks.get(i), block.truth.masks[i])

    def _add_probabilities(self, one: npt.NDArray[np.float32], two: npt.NDArray[np.float32]) -> None:
        finite = np.isfinite(one) & np.isfinite(two)
        self.non_finite += int(np.count_nonzero(~finite))
        self.errors.append(np.abs(one[finite].astype(np.float64) - two[finite]))


def _positions(flags: npt.NDArray[np.bool_]) -> list[int]:
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
