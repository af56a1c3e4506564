"""What tests of whole runs share: slices on disk, the command as a user types it, what a run left."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tests.badfiles import tiff
from tests.tinybundle import tiny_slice

CHECKOUT = Path(__file__).parents[1]
FOLDERS = ("masks", "overlays", "probabilities", "volumes")


@dataclass(frozen=True, slots=True)
class Ran:
    """A command's exit status and what it printed."""

    status: int
    out: str
    err: str


def command(*words: str | Path) -> list[str]:
    """The command line of `tumorscan`, from this checkout."""
    return [sys.executable, "-m", "engine.cli", *map(str, words)]


def environment() -> dict[str, str]:
    """An environment in which `command` works in any folder, and a terminal's width changes nothing."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    return {**kept, "PYTHONPATH": str(CHECKOUT)}


def tumorscan(*words: str | Path, cwd: Path, stdin: bytes = b"", prefix: tuple[str, ...] = ()) -> Ran:
    """Run the command to its end."""
    done = subprocess.run(
        [*prefix, *command(*words)], cwd=cwd, env=environment(), input=stdin, capture_output=True, timeout=300
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def write_slices(folder: Path, count: int, *, first: int = 0, patients: int = 4) -> list[Path]:
    """Write `count` slices as folder/pP/s_N.tif; the tiny bundle sees a lesion where N % 3 is not 1."""
    paths = []
    for number in range(first, first + count):
        path = folder / f"p{number % patients}" / f"s_{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiff(256, 256, pixels=tiny_slice(number, lesion=number % 3 != 1).tobytes()))
        paths.append(path)
    return paths


def table(out: Path, name: str = "results.csv") -> pd.DataFrame:
    """One of a run's tables, its empty cells as ""."""
    return pd.read_csv(out / name, keep_default_na=False, dtype=str)


def files_below(out: Path) -> dict[str, bytes]:
    """All pictures and mask volumes of a run, by their path below `out`."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for folder in FOLDERS
        for path in sorted((out / folder).rglob("*"))
        if path.is_file()
    }


def results(out: Path) -> bytes:
    """The bytes of results.csv."""
    return (out / "results.csv").read_bytes()
