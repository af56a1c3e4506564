"""The figures of a run: of all of its slices, and volume by volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from engine.page.results import Slice
from engine.page.truth import Judged, dice


@dataclass(slots=True)
class Volume:
    """What was found in the slices of one volume. `dice` is of its pixels pooled, None where unknown.

    `best` is the slice to look at first: the one with the largest mask, else with the highest probability.
    """

    name: str
    slices: int = 0
    quarantined: int = 0
    findings: int = 0
    pixels: int = 0
    probability: float = 0.0
    best: int = 0
    judged: int = 0
    tumours: int = 0
    missed: int = 0
    false_alarms: int = 0
    dice: float | None = None
    overlap: list[int] | None = field(default_factory=lambda: [0, 0, 0])
    _rank: tuple[int, float] = (-1, -1.0)

    def add(self, i: int, each: Slice, judged: Judged | None) -> None:
        """Count slice `i` of the run."""
        probability = each.probability or 0.0
        self.slices += 1
        self.quarantined += each.quarantined
        self.findings += each.has_mask
        self.pixels += each.pixels
        self.probability = max(self.probability, probability)
        if (each.pixels, probability) > self._rank:
            self.best, self._rank = i, (each.pixels, probability)
        if judged is not None:
            self._judge(judged)

    def _judge(self, judged: Judged) -> None:
        self.judged += 1
        self.tumours += judged.tumour
        self.missed += judged.missed
        self.false_alarms += judged.false_alarm
        if self.overlap is not None:
            pair = judged.overlap
            self.overlap = None if pair is None else [a + b for a, b in zip(self.overlap, pair, strict=True)]
        self.dice = None if self.overlap is None else dice(*self.overlap)


@dataclass(frozen=True, slots=True)
class Against:
    """The masks held against the truth; as `tumorscan evaluate` counts, which adds intervals.

    `n` slices have a true mask; means are None where nothing is there to take them of.
    """

    n: int
    hits: int
    missed: int
    false_alarms: int
    clear: int
    volumes: int
    dice_volume: float | None
    dice_volume_median: float | None
    dice_tumour: float | None

    @property
    def sensitivity(self) -> float | None:
        """Share of the tumour slices that have a mask."""
        return self.hits / (self.hits + self.missed) if self.hits + self.missed else None

    @property
    def specificity(self) -> float | None:
        """Share of the other slices that have none."""
        return self.clear / (self.clear + self.false_alarms) if self.clear + self.false_alarms else None


@dataclass(frozen=True, slots=True)
class Code:
    """Quarantined slices of one code, and the first of them by index."""

    stage: str
    code: str
    count: int
    first: Sequence[int]


@dataclass(frozen=True, slots=True)
class Tally:
    """All figures. `gated_out` is None where every slice was segmented, or nothing tells the gate."""

    slices: int
    quarantined: int
    findings: int
    gated_out: int | None
    volumes: Sequence[Volume]
    codes: Sequence[Code]
    against: Against | None


LISTED = 100
"""Quarantined slices of one code that are named."""


def tally(slices: Sequence[Slice], judged: Sequence[Judged | None], gate: float | None) -> Tally:
    """Count everything; `gate` is the threshold below which slices were not segmented."""
    volumes: dict[str, Volume] = {}
    for i, (each, truth) in enumerate(zip(slices, judged, strict=True)):
        volumes.setdefault(each.volume, Volume(each.volume)).add(i, each, truth)
    gated = None
    if gate is not None:
        gated = sum(1 for each in slices if each.probability is not None and each.probability < gate)
    return Tally(
        slices=len(slices),
        quarantined=sum(each.quarantined for each in slices),
        findings=sum(each.has_mask for each in slices),
        gated_out=gated,
        volumes=list(volumes.values()),
        codes=_codes(slices),
        against=_against([each for each in judged if each is not None], list(volumes.values())),
    )


def _codes(slices: Sequence[Slice]) -> list[Code]:
    lost = [(i, each) for i, each in enumerate(slices) if each.quarantined]
    counts = Counter((each.stage, each.code) for _, each in lost)
    return [
        Code(stage, code, count, [i for i, each in lost if (each.stage, each.code) == (stage, code)][:LISTED])
        for (stage, code), count in counts.most_common()
    ]


def _against(judged: Sequence[Judged], volumes: Sequence[Volume]) -> Against | None:
    if not judged:
        return None
    whole = [volume for volume in volumes if volume.judged]
    by_volume = [volume.dice for volume in whole if volume.dice is not None]
    of_tumours = [each.dice for each in judged if each.tumour and each.dice is not None]
    known = len(by_volume) == len(whole)
    return Against(
        n=len(judged),
        hits=sum(each.tumour and each.found for each in judged),
        missed=sum(each.missed for each in judged),
        false_alarms=sum(each.false_alarm for each in judged),
        clear=sum(not each.tumour and not each.found for each in judged),
        volumes=len(whole),
        dice_volume=mean(by_volume) if known else None,
        dice_volume_median=median(by_volume) if known else None,
        dice_tumour=mean(of_tumours) if known and of_tumours else None,
    )
