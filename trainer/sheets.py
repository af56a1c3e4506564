"""Contact sheets: many slices at a glance, with the outlines of the true and of the predicted mask."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.errors import MachineError
from trainer.dataset import read_mask
from trainer.failures import Errors, groups_of
from trainer.metrics import overlaps
from trainer.pictures import PREDICTED_COLOUR, TRUE_COLOUR, read_image

TILE = 224
"""Pixels; a slice is scaled to it."""
COLUMNS = 6
CAPTION = 30
"""Pixels below a tile, two lines of text."""
MOST_OF_ONE = 4
"""Slices of one patient on a sheet, so that one failed volume does not fill it."""


def write_sheets(slices: pd.DataFrame, folder: Path, count: int) -> list[Path]:
    """One PNG a group of `trainer.failures` and one of the worst volumes; what was written, in that order.

    Args:
        slices: with the columns of KEPT and PATHS in `trainer.measure`.
        folder: made if need be.
        count: the most slices of a sheet, and the tumour slices of all volumes on theirs.

    Raises:
        UsageError: a slice or a mask that cannot be read.
        MachineError: a sheet that cannot be written.
    """
    slices = with_losses(slices)
    chosen = {name: worst(slices[group], count) for name, group in groups_of(slices).items()}
    chosen["volumes"] = worst_volumes(slices, count)
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in chosen.items():
        if len(rows):
            path = folder / f"{name.replace(' ', '_')}.png"
            if not cv2.imwrite(str(path), sheet(rows)[..., ::-1]):
                raise MachineError(f"cannot write the picture {path}: look at its folder and the disk")
            written.append(path)
    return written


def with_losses(slices: pd.DataFrame) -> pd.DataFrame:
    """Adds `dice` of each slice and `lost`, what the Dice of its volume would gain without its errors."""
    slices = slices.reset_index(drop=True)
    pixels = (slices[name].to_numpy(np.int64) for name in ("tp", "fp", "fn", "tn"))
    return slices.assign(dice=overlaps(*pixels)["dice"], lost=Errors.of(slices).lost_by_slice())


def worst(slices: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` slices that lose anything, those that lose most first, MOST_OF_ONE a patient."""
    lossy = slices[slices["lost"] > 0].sort_values("lost", ascending=False, kind="stable")
    chosen: pd.DataFrame = lossy.groupby("patient_id", sort=False).head(MOST_OF_ONE).head(count)
    return chosen


def worst_volumes(slices: pd.DataFrame, count: int) -> pd.DataFrame:
    """A line of COLUMNS tumour slices, evenly spread and in order, of each of the lowest volumes."""
    errors = Errors.of(slices)
    patients = slices["patient_id"].unique()
    lowest = patients[np.argsort(errors.dice_without(np.zeros(len(slices), np.bool_)), kind="stable")]
    lines = []
    for patient in lowest[: max(1, count // COLUMNS)]:
        tumours = slices[(slices["patient_id"] == patient) & (slices["mask"] == 1)]
        places = np.linspace(0, len(tumours) - 1, COLUMNS).round().astype(np.int64)
        lines.append(tumours.iloc[places] if len(tumours) else tumours)
    chosen: pd.DataFrame = pd.concat(lines)
    return chosen


def sheet(rows: pd.DataFrame) -> npt.NDArray[np.uint8]:
    """RGB, COLUMNS tiles a line: true outline green, predicted outline red, below them what it is."""
    tiles = [_tile(row) for _, row in rows.iterrows()]
    lines = -(-len(tiles) // COLUMNS)
    blank = np.zeros((TILE + CAPTION, TILE, 3), np.uint8)
    tiles += [blank] * (lines * COLUMNS - len(tiles))
    grid = np.stack(tiles).reshape(lines, COLUMNS, TILE + CAPTION, TILE, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(lines * (TILE + CAPTION), COLUMNS * TILE, 3)


def _tile(row: pd.Series) -> npt.NDArray[np.uint8]:
    """[TILE + CAPTION, TILE, 3]; a predicted_path that is "" or missing is an empty mask."""
    image = read_image(row["image_path"])
    scale = TILE / max(image.shape[:2])
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    paths = ((row["predicted_path"], PREDICTED_COLOUR), (row["mask_path"], TRUE_COLOUR))
    for path, colour in paths:
        if isinstance(path, str) and path:
            mask = cv2.resize(read_mask(path).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(small, outlines, -1, colour, 1)
    tile = np.zeros((TILE + CAPTION, TILE, 3), np.uint8)
    tile[: size[1], : size[0]] = small
    name = Path(row["image_path"]).stem.removeprefix("TCGA_")
    figures = f"Dice {row['dice']:.2f} lost {row['lost']:.3f} p {row['tumor_probability']:.2f}"
    for line, text in enumerate((name, figures)):
        place = (3, TILE + 12 + 13 * line)
        cv2.putText(tile, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (255, 255, 255), 1, cv2.LINE_AA)
    return cast("npt.NDArray[np.uint8]", tile)
