"""What a run is asked for, what is settled on, and how it ends: `engine.scoring` does it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from engine.backend import Device, Runtime
from engine.bundle import Bundle
from engine.cascade import OperatingPoint
from engine.flips import NO_FLIPS, Flips
from engine.ledger import Counts
from engine.outputs.components import KEEP_ALL, Rule
from engine.outputs.runjson import ClusterReport, GpuReport
from engine.pipeline import Totals
from engine.runners.base import Precision
from engine.sources.shards import Shard
from engine.text import shown

LEDGER = "run.sqlite"
BLOCK = 16
"""Slices a ring block on the CPU: enough that the cascade's two passes fill every core; they cost 3 MB."""
PROOF_SLICES = 64
"""On so many slices is FP16 compared with float32."""
LANES = 2
"""A GPU: while one lane's results are copied and decided on, the other computes. Not measured yet."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to score, where to, and how; the command's options of the same names explain each.

    `backend` and `precision` "auto" take what the run was begun with, else the best there is. `batch` is the
    slices a block (None: BLOCK on the CPU, by free memory on GPUs), `workers` the decode processes (None: by
    the cores). `gpus` is "all" or indexes such as "0,2" (None: all of the first one's model), `lanes` are
    those of each. `max_runtime` is in seconds. `files_from` is a file that lists the slices, or "-" for
    standard input; `listed` are paths instead, taken one after the other as the run goes on. `anonymise` is
    the private folder of the key. With `shard` only that part of the input is scored (sources/shards tells
    which), and `limit` is of that part. `arguments` is the command line, for run.json. An `out` in an object
    store is given as its address; within the run it is the folder that the run works in, and `store` the
    address.
    """

    inputs: tuple[str, ...]
    out: Path
    bundle: Path | None = None
    files_from: str | None = None
    limit: int | None = None
    batch: int | None = None
    workers: int | None = None
    backend: str = "auto"
    gpus: str | None = None
    lanes: int = LANES
    plan_cache: Path | None = None
    precision: str = "auto"
    threshold: float | None = None
    mask_threshold: float | None = None
    gate: bool = True
    flips: Flips = NO_FLIPS
    masks: Literal["png", "rle", "none"] = "png"
    components: Rule = KEEP_ALL
    overlays: bool = False
    save_probabilities: bool = False
    parquet: bool = False
    anonymise: Path | None = None
    keep_patient: bool = False
    channels: str | None = None
    retry: bool = False
    fresh: bool = False
    max_runtime: float | None = None
    arguments: tuple[str, ...] = ()
    listed: Iterable[bytes] | None = None
    shard: Shard | None = None
    ray: str | None = None
    store: str | None = None

    @property
    def private(self) -> Path:
        """Where the run keeps what knows names: its output, or with `anonymise` a folder of its own."""
        return private_folder(self.out, self.anonymise)

    @property
    def ledger(self) -> Path:
        """The run's ledger, which knows the names of all files."""
        return self.private / LEDGER


@dataclass(frozen=True, slots=True)
class GpuUse:
    """How a run uses GPUs, all of one `model`.

    `devices` of a continued run are looked for only when there is something to score. `batch` is None where
    their free memory decides. `loaded` is what belongs to the run's identity and is known once the models are
    loaded: batch, version, and what may change a bit of each model's results; of a continued run it is what
    that was begun with.
    """

    runtime: Runtime
    model: str
    devices: tuple[Device, ...]
    lanes: int
    batch: int | None
    plan_cache: Path | None
    loaded: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will be done with. `why` says in a clause why on this backend, "" where it was named.

    `batch` are the slices a block on the CPU; on GPUs `gpus` has it.
    """

    bundle: Bundle
    backend: str
    precision: tuple[Precision, Precision]
    operating: OperatingPoint
    continued: bool
    batch: int = BLOCK
    why: str = ""
    gpus: GpuUse | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """What the scoring of a call came to: by which plan, and whether all there is was given to it.

    `start_up` is in seconds.
    """

    plan: Plan
    all_fed: bool
    totals: Totals = field(default_factory=Totals)
    start_up: float = 0.0
    gpu: GpuReport | None = None
    cluster: ClusterReport | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `finished` is False when it was stopped; the same call continues it.

    `gpu` is None on the CPU, and where this call scored nothing. Of a `shard` all but `names` is of that part
    of the input; `names` are the files of the whole of it. With `store`, an address, the results are there
    and `out` is the folder that the run worked in.
    """

    plan: Plan
    out: Path
    finished: bool
    nothing_new: bool
    counts: Counts
    totals: Totals
    gated_out: int
    skipped_masks: int
    skipped_other: int
    gpu: GpuReport | None = None
    shard: Shard | None = None
    names: int = 0
    cluster: ClusterReport | None = None
    store: str | None = None

    @property
    def place(self) -> str:
        """Where the results are, as a user names it."""
        return self.store or shown(self.out)

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


def private_folder(out: Path, anonymise: Path | None) -> Path:
    """Where the run in `out` keeps what knows names; `anonymise` is the folder of its key, if it has one."""
    if anonymise is None:
        return out
    return anonymise / hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:16]
