"""What every peer is told, and what it leaves behind.

Needs numpy and OpenCV alone, as each peer has an environment of its own.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
COLUMNS = ("image_path", "tumor_probability", "has_mask", "mask_path", "mask_pixels")


@dataclass(frozen=True)
class Job:
    """The files to score, in this order, and where the cascade works.

    `graphs` and `weights` are the ONNX files and the .npz of layers by model, `imagenet_input` says which
    normalisation the classifier wants (BGR less the ImageNet means, else 0..1). `compiled` asks for the
    framework's compiler.
    """

    files: list[str]
    out: str
    graphs: dict[str, str]
    weights: dict[str, str]
    imagenet_input: bool
    gate_threshold: float
    mask_threshold: float
    min_pixels: int
    precision: str
    compiled: bool
    batch: int
    cores: int

    @classmethod
    def from_command_line(cls) -> Job:
        return cls(**json.loads(Path(sys.argv[1]).read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @property
    def blank(self) -> Images:
        """A batch to warm up with."""
        return np.zeros((self.batch, 256, 256, 3), np.uint8)


def read_slice(path: str) -> Images:
    """A slice as `[256,256,3] uint8` RGB."""
    image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise OSError(f"{path} cannot be read")
    return np.asarray(image, np.uint8)


@dataclass
class Results:
    """Writes masks as they come and the table at the end; `seconds` runs from when it is made."""

    job: Job
    began: float = field(default_factory=time.monotonic)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, path: str, probability: float, mask: npt.NDArray[Any] | None = None) -> None:
        """One slice: `mask` `[256,256]` is its pixel probabilities, or None where the gate stopped it."""
        tumour = None if mask is None else np.asarray(mask >= self.job.mask_threshold, np.uint8)
        self.add_mask(path, probability, tumour)

    def add_mask(self, path: str, probability: float, tumour: Images | None) -> None:
        """The same with a mask of 0 and 1."""
        pixels = 0 if tumour is None else int(np.count_nonzero(tumour))
        has_mask = tumour is not None and pixels >= self.job.min_pixels
        mask_path = f"masks/{Path(path).parent.name}/{Path(path).name}_mask.png" if has_mask else ""
        if has_mask and tumour is not None:
            place = Path(self.job.out) / mask_path
            place.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place), tumour * np.uint8(255))
        values = (path, float(probability), int(has_mask), mask_path, pixels if has_mask else 0)
        self.rows[path] = dict(zip(COLUMNS, values, strict=True))

    def finish(self) -> None:
        """Write the table in the order of the files, and print the time for who started this process."""
        with (Path(self.job.out) / "results.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(self.rows[path] for path in self.job.files)
        print(json.dumps({"slices": len(self.rows), "seconds": time.monotonic() - self.began}), flush=True)
