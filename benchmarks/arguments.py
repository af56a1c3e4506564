"""The options that every benchmark takes."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine, results
from benchmarks.results import Name, Result, Rows
from benchmarks.slices import WorkSet
from engine.bundle import Bundle
from engine.errors import TumorscanError

QUICK_SLICES = 48
"""Of a dry run: three blocks."""
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/:'\"]+/)+")
"""Of absolute paths: where things lie on this machine is nobody's business."""


@dataclass(frozen=True, slots=True)
class Common:
    """`minutes` is about what the measuring may take; a `quick` run is a dry one and shows no speed."""

    data: Path | None
    bundle: Bundle
    scratch: Path | None
    repeats: int
    minutes: float
    quick: bool
    results: Path

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for outputs, deleted at the end."""
        with tempfile.TemporaryDirectory(prefix="tumorscan-benchmark-", dir=self.scratch) as folder:
            yield Path(folder)


def add_common(parser: argparse.ArgumentParser, *, minutes: float, repeats: int) -> None:
    parser.add_argument("--data", type=absolute, help="a folder of real slices (else phantoms are drawn)")
    parser.add_argument("--bundle", type=absolute, help="the model bundle (else the one that is installed)")
    parser.add_argument("--scratch", type=absolute, help="for outputs (else the temporary folder)")
    parser.add_argument("--minutes", type=float, default=minutes, help=f"about how long (else {minutes:g})")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"interleaved (else {repeats})")
    parser.add_argument("--quick", action="store_true", help="a dry run on a few slices; measures nothing")
    parser.add_argument("--results", type=absolute, default=results.FOLDER, help="where the JSON is written")


def absolute(text: str) -> Path:
    """A typed path, for a process that runs in another folder; links stay, as an environment may be one."""
    return Path(text).absolute()


def run(main: Callable[[], None]) -> None:
    """Run a program; what a user can mend ends it with one line."""
    try:
        main()
    except TumorscanError as error:
        sys.exit(f"benchmarks: {error}")


def common(parsed: argparse.Namespace) -> Common:
    return Common(
        data=parsed.data,
        bundle=Bundle.load(parsed.bundle or Bundle.default_folder()),
        scratch=parsed.scratch,
        repeats=1 if parsed.quick else parsed.repeats,
        minutes=parsed.minutes,
        quick=parsed.quick,
        results=parsed.results,
    )


class Report:
    """Gathers what a benchmark measured; made before the first measurement, written after the last."""

    def __init__(self, name: Name, options: Common) -> None:
        self.rows = Rows()
        self.notes: list[str] = []
        self.packages: dict[str, str] = {}
        self._name = name
        self._options = options
        self._started = datetime.now(UTC)
        self._load = machine.load()

    def write(self, work: WorkSet, scratch: Path, settings: dict[str, str | int | float]) -> Path:
        options = self._options
        result = Result(
            benchmark=self._name,
            quick=options.quick,
            revision=machine.revision(),
            bundle_sha256=options.bundle.sha256,
            started=self._started,
            minutes=round((datetime.now(UTC) - self._started).total_seconds() / 60, 1),
            settings={"repeats": options.repeats, **settings},
            machine=machine.describe(scratch, self._load, self.packages),
            data=work.data,
            rows=self.rows.gathered(),
            notes=tuple(_FOLDERS.sub("", note) for note in self.notes),
        )
        path = results.write(result, options.results)
        print(f"{path}: {result.minutes:g} minutes", flush=True)
        return path


def say(text: str) -> None:
    """Tell how far it is; a benchmark of half an hour should not look dead."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)
