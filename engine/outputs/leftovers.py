"""What a run writes below its output folder, and how that is taken away for another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

FOLDERS: Final = ("masks", "overlays", "probabilities")
"""What slices have files in."""
TABLES: Final = (
    "results.csv", "errors.csv", "volumes.csv", "results.parquet", "errors.parquet", "run.json",
)  # fmt: skip


def remove_outputs(out: Path) -> None:
    """Delete what an earlier run left. Raises OSError."""
    for folder in (out / name for name in (*FOLDERS, "volumes")):
        if folder.is_dir():  # perhaps a link to another disk, which is kept
            for entry in folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
    for name in TABLES:
        (out / name).unlink(missing_ok=True)
