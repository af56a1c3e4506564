"""What `tumorscan score` left in its output folder, read back.

The tables are what a run hands over, and all there is where only they were copied; so they are read wherever
they are whole. The ledger is read where they are not there yet, or lack slices that it has: after a kill, or
while the run goes on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from engine.errors import TumorscanError, UsageError
from engine.ledger import SliceRow
from engine.ledger_readers import stored_count, stored_identity, stored_rows
from engine.text import shown

LEDGER: Final = "run.sqlite"
_NEEDED: Final = {
    "results.csv": (
        "volume", "image_path", "slice", "status", "tumor_probability", "has_mask", "mask_path",
        "mask_pixels", "mask_fraction",
    ),
    "errors.csv": ("image_path", "slice", "code"),
    "volumes.csv": ("volume", "ml"),
}  # fmt: skip
_LONGEST_CELL: Final = 2**27
"""Characters. A mask may stand in a cell, as run lengths; the csv module's own limit is 2**17."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice's outcome. `probability` is None where it is quarantined; then `code` says why.

    `pixels` are the mask's, at the source's size, `fraction` their share of it. The mask itself is `mask_rle`
    (see outputs/rle) or the PNG `mask_path` below the results; both are "" where no mask was kept.
    """

    volume: str
    image_path: str
    index: int
    probability: float | None
    has_mask: bool = False
    mask_path: str = ""
    mask_rle: str = ""
    pixels: int = 0
    fraction: float = 0.0
    stage: str = ""
    code: str = ""
    message: str = ""

    @property
    def quarantined(self) -> bool:
        """Whether it could not be scored."""
        return self.probability is None


class _Known(BaseModel):
    """What the page tells of run.json; what other versions have besides is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Bundle(_Known):
    """Which bundle scored. `name` is "" where only the ledger tells."""

    name: str = ""
    sha256: str


class Operating(_Known):
    """The thresholds that were used."""

    gate: bool
    gate_threshold: float
    mask_threshold: float
    min_pixels: int


class Timings(_Known):
    """Seconds, and slices, of the call that wrote run.json."""

    slices: int
    seconds: float


class Machine(_Known):
    """What scored."""

    cpu: str
    logical_cores: int


class Merged(_Known):
    """Of which shards it was made: their rates added up."""

    shards: list[object]
    slices_per_second_summed: float


class Run(_Known):
    """How the slices were scored. What only run.json knows is None where there is none."""

    bundle: Bundle
    runtime: str
    runtime_version: str = ""
    precision: dict[str, str]
    operating_point: Operating
    finished: bool
    shard: str | None = None
    merged: Merged | None = None
    tumorscan: str = ""
    arguments: list[str] = []
    started: AwareDatetime | None = None
    ended: AwareDatetime | None = None
    timings: Timings | None = None
    slices_per_second: Annotated[float, Field(ge=0)] | None = None
    machine: Machine | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """A run's slices in its order, and how they were scored (None: nothing tells).

    `notes` are for the page. `millilitres` are of the masks of those volumes whose spacing is known.
    """

    folder: Path
    slices: list[Slice]
    run: Run | None
    notes: tuple[str, ...] = ()
    millilitres: Mapping[str, float] = field(default_factory=dict)


def read_results(folder: Path) -> Results:
    """Read the output folder of a run, finished or not; all its rows are held, half a kilobyte each.

    Raises UsageError where it is none, where nothing was scored into it yet, and for tables of another form;
    MachineError where it cannot be read.
    """
    _refuse_other_folders(folder)
    run, notes = _read_run(folder / "run.json")
    if _tables_are_whole(folder):
        slices = _read_tables(folder)
    else:
        slices = [_of_ledger(row) for row in _stored(folder)]
        run = run.model_copy(update={"finished": False}) if run else _run_of_ledger(folder)
    if not slices:
        raise UsageError(f"{shown(folder)} has no slices: nothing was scored into this folder yet")
    if run is None or not run.finished:
        notes = ("The run has not finished: these are the slices it has come to so far. "
                 "The same `tumorscan score` command continues it.", *notes)  # fmt: skip
    return Results(folder, slices, run, notes, _millilitres(folder / "volumes.csv"))


def _refuse_other_folders(folder: Path) -> None:
    if not folder.exists():
        raise UsageError(f"{shown(folder)}: no such folder: give the output folder of `tumorscan score`")
    if not folder.is_dir():
        raise UsageError(f"{shown(folder)} is a file: give the output folder of `tumorscan score`")
    if not any((folder / name).is_file() for name in ("results.csv", LEDGER)):
        raise UsageError(
            f"{shown(folder)} holds neither results.csv nor {LEDGER}: give the output folder of "
            "`tumorscan score`"
        )


def _tables_are_whole(folder: Path) -> bool:
    """Whether results.csv has all that is scored: the ledger, where there is one, has no more rows."""
    table, ledger = folder / "results.csv", folder / LEDGER
    if not table.is_file() or not ledger.is_file():
        return table.is_file()
    try:
        stored = 0 if stored_identity(ledger) is None else stored_count(ledger)
    except TumorscanError:  # another version's, or damaged: the table stands by itself
        return True
    return stored <= sum(1 for _ in _records(table))


def _stored(folder: Path) -> Iterator[SliceRow]:
    ledger = folder / LEDGER
    try:
        return iter(()) if stored_identity(ledger) is None else stored_rows(ledger)
    except UsageError as error:
        raise UsageError(f"{error} (options of `tumorscan score`)") from error


def _read_tables(folder: Path) -> list[Slice]:
    errors = folder / "errors.csv"
    why = {(each["image_path"], each["slice"]): each for each in _records(errors)} if errors.is_file() else {}
    table = folder / "results.csv"
    with closing(_records(table)) as records:
        return [_of_table(table, number, each, why) for number, each in enumerate(records, 2)]


def _records(path: Path) -> Generator[dict[str, str], None, None]:
    """The rows of a table by column; its file is closed with it.

    Raises UsageError where it cannot be read or is none of ours.
    """
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restval="")
            missing = [name for name in _NEEDED[path.name] if name not in (reader.fieldnames or ())]
            if missing:
                raise UsageError(
                    f"{shown(path)} is not a table of this version: it has no column {', '.join(missing)}; "
                    "score the slices again"
                )
            yield from reader
    except OSError as error:
        raise UsageError(f"{shown(path)} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{shown(path)} is damaged: {error}") from error


def _millilitres(path: Path) -> dict[str, float]:
    """By volume; empty where there is no such table: of older runs, and of those that have not ended."""
    if not path.is_file():
        return {}
    try:
        with closing(_records(path)) as records:
            return {each["volume"]: float(each["ml"]) for each in records if each["ml"]}
    except ValueError as error:
        raise UsageError(f"{shown(path)} is damaged: {error}") from error


def _of_table(
    path: Path, number: int, cells: Mapping[str, str], why: Mapping[tuple[str, str], Mapping[str, str]]
) -> Slice:
    try:
        place = cells["volume"], cells["image_path"], int(cells["slice"])
        if cells["status"] != "ok":
            told = why.get((cells["image_path"], cells["slice"]), {})
            return Slice(
                *place, None, stage=told.get("stage", ""), code=told["code"] if told else "unknown",
                message=told.get("message", ""),
            )  # fmt: skip
        return Slice(
            *place,
            float(cells["tumor_probability"]),
            has_mask=cells["has_mask"] == "1",
            mask_path=cells["mask_path"],
            mask_rle=cells.get("mask_rle", ""),
            pixels=int(cells["mask_pixels"]),
            fraction=float(cells["mask_fraction"]),
        )
    except ValueError as error:
        raise UsageError(f"{shown(path)}, line {number} or near it, is damaged: {error}") from error


def _of_ledger(row: SliceRow) -> Slice:
    place = row.volume, row.image_path, row.slice
    if row.status != "ok":
        return Slice(*place, None, stage=row.stage, code=row.code, message=row.message)
    return Slice(
        *place,
        row.tumor_probability or 0.0,
        has_mask=row.has_mask == 1,
        mask_path=row.mask_path,
        mask_rle=row.mask_rle,
        pixels=row.mask_pixels or 0,
        fraction=row.mask_fraction or 0.0,
    )


def _read_run(path: Path) -> tuple[Run | None, tuple[str, ...]]:
    try:
        return Run.model_validate(json.loads(path.read_bytes())), ()
    except FileNotFoundError:
        return None, ()
    except (OSError, ValueError, ValidationError):
        return None, ("run.json cannot be read, so the page lacks what it tells (bundle, speed).",)


def _run_of_ledger(folder: Path) -> Run | None:
    """What the ledger knows of a run that was killed before it wrote run.json."""
    identity = stored_identity(folder / LEDGER) or {}
    try:
        classifier, segmenter = cast("Iterable[str]", identity["precision"])
        return Run.model_validate(
            {
                "bundle": {"sha256": identity["bundle"]},
                "runtime": identity["backend"],
                "runtime_version": identity.get("backend_version", ""),
                "precision": {"classifier": classifier, "segmenter": segmenter},
                "operating_point": {
                    "gate": identity["gate"],
                    "gate_threshold": identity["threshold"],
                    "mask_threshold": identity["mask_threshold"],
                    "min_pixels": identity["min_pixels"],
                },
                "finished": False,
                "shard": identity.get("shard"),
            }
        )
    except (KeyError, TypeError, ValueError):
        return None
