"""What a run is asked for, what is settled on, and how it ends: `engine.score` does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.bundle import Bundle
from engine.cascade import OperatingPoint
from engine.ledger import Counts
from engine.pipeline import Totals
from engine.runners.base import Precision

BLOCK = 16
"""Slices a ring block: enough that the cascade's two passes fill every core, and few enough to cost 3 MB."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to score, where to, and how; the command's options of the same names explain each.

    `backend` and `precision` "auto" take what the run was begun with, else the best there is. `batch` is the
    slices a block, `workers` the decode processes (None: by the cores). `max_runtime` is in seconds.
    `files_from` is a file that lists the slices, or "-" for standard input.
    """

    inputs: tuple[str, ...]
    out: Path
    bundle: Path | None = None
    files_from: str | None = None
    limit: int | None = None
    batch: int = BLOCK
    workers: int | None = None
    backend: str = "auto"
    precision: str = "auto"
    threshold: float | None = None
    mask_threshold: float | None = None
    gate: bool = True
    masks: Literal["png", "none"] = "png"
    overlays: bool = False
    retry: bool = False
    fresh: bool = False
    max_runtime: float | None = None
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will be done with."""

    bundle: Bundle
    backend: str
    precision: tuple[Precision, Precision]
    operating: OperatingPoint
    continued: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `finished` is False when it was stopped; the same call continues it."""

    plan: Plan
    out: Path
    finished: bool
    nothing_new: bool
    counts: Counts
    totals: Totals
    gated_out: int
    skipped_masks: int
    skipped_other: int

    @property
    def slices_per_second(self) -> float:
        """This call's rate, first slice read to last row committed."""
        return self.totals.slices / self.totals.seconds if self.totals.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Survey:
    """What a dry run found: slices in the input, and of these how many are still to be scored."""

    plan: Plan
    slices: int
    pending: int
    skipped_masks: int
    skipped_other: int
