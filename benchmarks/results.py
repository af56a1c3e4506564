"""What every benchmark writes: one JSON file of rows of series, and the machine they are of."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt

import engine

FOLDER: Final = Path(__file__).parent / "results"
SCHEMA: Final = FOLDER / "schema.json"

Name = Literal["throughput", "host", "scaling", "peers", "gpu_check", "cluster", "requests"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Series(_Part):
    """One quantity, once a repeat."""

    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Largest less smallest, as a share of the median."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0


class Row(_Part):
    """What was measured (`of`, by kind: precision, cores, files ...) and all that was measured of it."""

    of: dict[str, str]
    series: dict[str, Series]

    def median(self, name: str) -> float | None:
        found = self.series.get(name)
        return None if found is None else found.median


class Host(_Part):
    """The machine, without its name. `governor` is "unknown" where the kernel shows none, as in guests."""

    cpu: str
    logical_cores: int
    virtual: bool
    governor: str
    memory_bytes: int
    kernel: str
    python: str
    gpus: tuple[str, ...]
    scratch_file_system: str
    packages: dict[str, str]
    load_before: float
    load_after: float


class Data(_Part):
    """The files that were scored: distinct ones, spread evenly over the data set of that name."""

    name: str
    files: NonNegativeInt
    bytes: NonNegativeInt


class Result(_Part):
    """All of results/NAME.json. `quick` results prove that the program runs, and nothing about speed."""

    format: Literal[1] = 1
    benchmark: Name
    quick: bool
    tumorscan: str = engine.__version__
    revision: str
    bundle_sha256: str
    started: AwareDatetime
    minutes: NonNegativeFloat
    settings: dict[str, str | int | float]
    machine: Host
    data: Data
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def rows_of(self, **of: str) -> list[Row]:
        return [row for row in self.rows if of.items() <= row.of.items()]

    def median(self, series: str, **of: str) -> float | None:
        """The median of the first row that is `of` all this and has such a series."""
        return next((row.median(series) for row in self.rows_of(**of) if series in row.series), None)


def write(result: Result, folder: Path = FOLDER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.benchmark}.json"
    path.write_text(result.model_dump_json(indent=1) + "\n")
    return path


def read(name: Name, folder: Path = FOLDER) -> Result | None:
    path = folder / f"{name}.json"
    return Result.model_validate_json(path.read_text()) if path.is_file() else None


def schema() -> str:
    return json.dumps(Result.model_json_schema(), indent=1) + "\n"


class Rows:
    """Gathers values while a benchmark runs."""

    def __init__(self) -> None:
        self._found: dict[tuple[tuple[str, str], ...], dict[str, tuple[str, list[float]]]] = {}

    def add(self, of: dict[str, str], name: str, unit: str, value: float) -> None:
        series = self._found.setdefault(tuple(of.items()), {})
        series.setdefault(name, (unit, []))[1].append(value)

    def gathered(self) -> tuple[Row, ...]:
        return tuple(
            Row(
                of=dict(of),
                series={name: Series(unit=unit, values=tuple(each)) for name, (unit, each) in series.items()},
            )
            for of, series in self._found.items()
        )


if __name__ == "__main__":
    SCHEMA.write_text(schema())
