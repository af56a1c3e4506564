"""What every process of gpu_check is told, as one JSON argument."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

PACE: Final = 30_000
"""Slices a second of the paced runner: above what an H100 does by arithmetic (25,000)."""
GPU: Final = 0
"""The first GPU of those visible is measured."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`data` is the folder of slices, `links` one of many links to them, `scratch` one for outputs.

    `seconds` is what the section has for measuring. At most `most` slices are held decoded; `workers` decode.

    `batch` and `lanes` are those of everything that does not vary them. A `quick` run varies less. A `dry`
    one is on a double of the GPU and measures nothing. `known` are figures that earlier sections found.
    """

    data: str
    links: str
    bundle: str
    scratch: str
    batch: int
    lanes: int
    seconds: float
    repeats: int
    quick: bool
    dry: bool
    workers: int
    most: int
    plan_cache: str | None = None
    known: Mapping[str, float] = field(default_factory=dict)

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Settings:
        return cls(**json.loads(text))

    def seconds_each(self, points: int, least: float = 0.3, most: float = 3.0) -> float:
        """How long one of `points` measurements, each done `repeats` times, may take."""
        if self.dry:
            return 0.01
        return min(most, max(least, self.seconds / (points * self.repeats)))

    @property
    def slices(self) -> Path:
        return Path(self.data)

    @property
    def many(self) -> Path:
        return Path(self.links)

    @property
    def folder(self) -> Path:
        return Path(self.scratch)

    @property
    def cache(self) -> Path | None:
        return None if self.plan_cache is None else Path(self.plan_cache)
