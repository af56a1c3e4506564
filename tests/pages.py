"""What tests of the report page share: results made by hand, pictures and true masks to go with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from engine.outputs.masks import write_mask
from engine.outputs.tables import ERROR_COLUMNS, RESULT_COLUMNS, line
from tests.badfiles import tiff

SIDE = 64


@dataclass(frozen=True, slots=True)
class Spot:
    """A slice `volume`/`name`: a square at (`x`, `y`) of `side` pixels found in it, and one true, or None."""

    volume: str
    name: str
    probability: float | None = 0.01
    found: tuple[int, int, int] | None = None
    true: tuple[int, int, int] | None = None
    code: str = "decode"
    message: str = "the decoder refuses it"

    @property
    def path(self) -> str:
        return f"{self.volume}/{self.name}"


def square(spot: tuple[int, int, int] | None) -> npt.NDArray[np.uint8]:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    if spot is not None:
        x, y, side = spot
        mask[y : y + side, x : x + side] = 1
    return mask


def spots(count: int, *, volumes: int = 3) -> list[Spot]:
    """Slices of which every third has a mask, every sixth a tumour that is missed."""
    found = {0: (10, 12, 20), 1: None, 2: None}
    true = {0: (12, 12, 20), 1: None, 2: None, 3: (10, 12, 20), 4: None, 5: (30, 30, 8)}
    likely = {0: 0.97, 1: 0.02, 2: 0.3}
    return [
        Spot(f"data/p{n * volumes // count}", f"s_{n}.tif", likely[n % 3], found[n % 3], true[n % 6])
        for n in range(count)
    ]


def write_results(base: Path, slices: Sequence[Spot], *, images: bool = True, truth: bool = True) -> Path:
    """Write `base`/out with tables, masks and run.json, and the slices with their true masks beside it."""
    out = base / "out"
    out.mkdir(parents=True)
    rows, errors = [line(RESULT_COLUMNS)], [line(ERROR_COLUMNS)]
    for number, spot in enumerate(slices):
        if spot.probability is None:
            rows.append(line((spot.volume, spot.path, 0, "quarantined", *[None] * 9)))
            errors.append(line((spot.path, 0, "decode", spot.code, spot.message)))
            continue
        mask, name = square(spot.found), f"masks/{number}_mask.png"
        if spot.found:
            write_mask(bytes(out / name), mask)
        pixels = int(mask.sum())
        known = (spot.probability, int(pixels > 0), name if pixels else "", pixels, pixels / SIDE**2)
        rows.append(line((spot.volume, spot.path, 0, "ok", *known, *cv2.boundingRect(mask))))
        if images:
            write_image(base / spot.path, number)
        if truth:
            write_truth(base / spot.path, square(spot.true))
    (out / "results.csv").write_bytes(b"".join(rows))
    (out / "errors.csv").write_bytes(b"".join(errors))
    (out / "run.json").write_text(json.dumps(run_json(len(slices))))
    return out


def write_image(path: Path, seed: int) -> None:
    """A slope of its own colour: what a picture of it costs is next to nothing."""
    slope = np.linspace(20, 90, SIDE)[:, np.newaxis, np.newaxis] + np.array([seed % 60, 0, seed % 7])
    pixels = np.broadcast_to(slope, (SIDE, SIDE, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tiff(SIDE, SIDE, pixels=pixels.tobytes()))


def write_truth(path: Path, mask: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.with_name(f"{path.stem}_mask.tif")
    target.write_bytes(tiff(*mask.shape, channels=1, pixels=(mask * 255).tobytes()))


def run_json(slices: int) -> dict[str, object]:
    """As a finished run of this version writes it, but for what the page does not tell."""
    return {
        "tumorscan": "0.1.0",
        "arguments": ["score", "data", "--out", "out"],
        "ended": "2026-05-04T10:11:12Z",
        "finished": True,
        "bundle": {"name": "tiny", "sha256": "ab" * 32},
        "runtime": "onnxruntime",
        "runtime_version": "1.23",
        "precision": {"classifier": "fp32", "segmenter": "fp32"},
        "operating_point": {"gate": True, "gate_threshold": 0.5, "mask_threshold": 0.5, "min_pixels": 1},
        "timings": {"slices": slices, "seconds": 2.0},
        "slices_per_second": slices / 2,
        "machine": {"cpu": "a CPU", "logical_cores": 2},
    }
