"""Which slices stand on the page where there are more than it can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.page.results import Slice
from engine.page.truth import Judged

POOR_DICE = 0.5
"""Below it a found tumour counts as an error here."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Indices of the slices to show, in the run's order, and how they were drawn ("" for all of them)."""

    chosen: Sequence[int]
    said: str


def is_error(judged: Judged | None) -> bool:
    """Whether a slice is missed, a false alarm, or its mask a poor one."""
    if judged is None:
        return False
    poor = judged.tumour and judged.dice is not None and judged.dice < POOR_DICE
    return judged.missed or judged.false_alarm or poor


def choose(slices: Sequence[Slice], judged: Sequence[Judged | None], limit: int, seed: int) -> Sample:
    """At most `limit` slices: errors first, then findings, each at random where there are too many.

    What is left is filled with whole volumes, drawn at random, so that these can be leafed through. Equal
    arguments give an equal sample.
    """
    if len(slices) <= limit:
        return Sample(range(len(slices)), "")
    rng = np.random.default_rng(seed)
    errors = [i for i, each in enumerate(judged) if is_error(each)]
    known = set(errors)
    findings = [i for i, each in enumerate(slices) if each.has_mask and i not in known]
    chosen: list[int] = []
    said = []
    for group, name in (
        (errors, "errors"),
        (findings, "findings without an error" if errors else "findings"),
    ):
        taken = _some(group, limit - len(chosen), rng)
        chosen += taken
        if group:
            whole = len(taken) == len(group)
            said.append(f"all {len(group):,} {name}" if whole else f"{len(taken):,} of {len(group):,} {name}")
    others = _whole_volumes(slices, set(chosen), limit - len(chosen), rng)
    if others:
        said.append(f"{len(others):,} others of volumes drawn at random")
    told = f"{limit:,} of {len(slices):,} slices are shown: {', '.join(said)} (seed {seed})."
    return Sample(sorted(chosen + others), told)


def _some(group: list[int], room: int, rng: np.random.Generator) -> list[int]:
    return group if len(group) <= room else [int(i) for i in rng.choice(group, room, replace=False)]


def _whole_volumes(
    slices: Sequence[Slice], taken: set[int], room: int, rng: np.random.Generator
) -> list[int]:
    """Slices that are not `taken`, volume by volume, until there is no `room`."""
    volumes: dict[str, list[int]] = {}
    for i, each in enumerate(slices):
        if i not in taken:
            volumes.setdefault(each.volume, []).append(i)
    groups = list(volumes.values())
    drawn = [i for place in rng.permutation(len(groups)) for i in groups[place]]
    return drawn[:room]
