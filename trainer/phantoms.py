"""Synthetic MRI-like slices with true masks, for tests, demonstrations and people without data.

Phantoms are drawings, not simulated physics: ellipses, thresholded noise and blur whose grey levels, head
size and lesion areas were set by eye and by a few statistics to resemble the LGG set (Buda et al.). Nothing
measured on them says anything about patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engine.errors import MachineError, UsageError
from trainer.phantom_anatomy import (
    FLAIR,
    SIZE,
    Bytes,
    Head,
    Plane,
    brain_depth,
    draw_head,
    head_radius,
    paint_brain,
    paint_surroundings,
    paint_ventricles,
    resized,
)
from trainer.phantom_lesions import Lesion, draw_lesion, paint_lesion

INSTITUTIONS = ("AX", "BN", "CV", "DM", "ER")
LESION_PATIENTS = 0.86
# Channels that a patient lacks and FLAIR stands in for, as in the LGG set, and how often that happens.
MISSING: tuple[tuple[int, ...], ...] = ((), (0, 2), (0,), (2,))
MISSING_SHARES = (0.86, 0.08, 0.03, 0.03)


@dataclass(frozen=True, slots=True)
class PhantomSet:
    """What was written: the kaggle_3m folder `root`, and counts of slices and patients."""

    root: Path
    slices: int
    lesion_slices: int
    patients: int


@dataclass(frozen=True, slots=True)
class _Scanner:
    """One patient's imaging: bias field [3,256,256], blur and noise in pixels and grey levels."""

    bias: Plane
    blur: float
    noise: float
    floor: float
    missing: tuple[int, ...]


def write_phantoms(
    dest: Path, count: int, seed: int, progress: Callable[[int], None] | None = None
) -> PhantomSet:
    """Draw `count` slices and their true masks as a kaggle_3m tree below `dest`.

    Files are DEST/kaggle_3m/PHANTOM_XX_0001/PHANTOM_XX_0001_1.tif (256x256x3 uint8, RGB: pre-contrast, FLAIR,
    post-contrast) and ..._1_mask.tif (256x256 uint8, 0 or 255), uncompressed. A patient has 18 to 24 slices
    from the neck up to the vertex; the last one is cut short. Patient 0001 always has a lesion and all three
    sequences. Patients depend on `seed` and their number alone, so a larger `count` begins with a smaller
    one's slices. The same count and seed give the same bytes with the same versions of numpy and OpenCV.
    `progress` is given the number of slices written so far, after each.

    Raises UsageError when `count` < 1, `seed` < 0, or the tree is there already; MachineError when a file
    cannot be written.
    """
    if count < 1:
        raise UsageError(f"cannot draw {count} phantoms: give a count of at least 1")
    if seed < 0:
        raise UsageError(f"cannot use seed {seed}: give a seed of at least 0")
    root = _new_root(dest)
    slices = lesion_slices = patients = 0
    while slices < count:
        patients += 1
        name, drawn = _draw_patient(seed, patients)
        folder = root / name
        _make_folder(folder)
        for number, (image, mask) in enumerate(drawn, start=1):
            _write_tiff(folder / f"{name}_{number}.tif", np.ascontiguousarray(image[:, :, ::-1]))
            _write_tiff(folder / f"{name}_{number}_mask.tif", mask)
            slices += 1
            lesion_slices += bool(mask.any())
            if progress is not None:
                progress(slices)
            if slices == count:
                break
    return PhantomSet(root, slices, lesion_slices, patients)


def _new_root(dest: Path) -> Path:
    root = dest / "kaggle_3m"
    _make_folder(root)
    if any(root.iterdir()):
        raise UsageError(f"{root} is not empty: name another folder, or remove it first")
    return root


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{path} cannot be a folder, a file is in its place: name another") from error
    except OSError as error:
        raise MachineError(f"cannot make the folder {path}: {error.strerror}") from error


def _write_tiff(path: Path, pixels: Bytes) -> None:
    if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_TIFF_COMPRESSION, 1]):
        raise MachineError(f"cannot write {path}: is the disk full, or the folder read-only?")


def _draw_patient(seed: int, number: int) -> tuple[str, Iterator[tuple[Bytes, Bytes]]]:
    rng = np.random.default_rng([seed, number])
    name = f"PHANTOM_{rng.choice(INSTITUTIONS)}_{number:04d}"
    heights = np.linspace(rng.uniform(-0.78, -0.58), rng.uniform(0.97, 1.06), int(rng.integers(18, 25)))
    head = draw_head(rng)
    has_lesion = rng.random() < LESION_PATIENTS or number == 1
    lesion = draw_lesion(rng, head, float(heights[1] - heights[0])) if has_lesion else None
    missing = MISSING[rng.choice(len(MISSING), p=MISSING_SHARES)] if number > 1 else ()
    scanner = _draw_scanner(rng, missing)
    return name, (_draw_slice(rng, head, lesion, scanner, float(z)) for z in heights)


def _draw_scanner(rng: np.random.Generator, missing: tuple[int, ...]) -> _Scanner:
    bias = np.stack([resized(rng.standard_normal((3, 3))) for _ in range(3)])
    return _Scanner(
        bias=np.exp(0.12 * bias),
        blur=rng.uniform(0.55, 1.1),
        noise=rng.uniform(1.0, 4.0),
        floor=rng.uniform(0.8, 3.0),
        missing=missing,
    )


def _draw_slice(
    rng: np.random.Generator, head: Head, lesion: Lesion | None, scanner: _Scanner, z: float
) -> tuple[Bytes, Bytes]:
    """One slice at height `z` (-1 neck, 1 vertex): image [256,256,3] and mask [256,256] of 0/255."""
    canvas = np.zeros((3, SIZE, SIZE), np.float32)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    if z < 1:
        depth = (head_radius(z) - head.radius) * np.float32(head.pixels)
        brain = brain_depth(head, depth, z)
        paint_surroundings(canvas, head, depth, brain, z)
        paint_brain(canvas, head, brain, z)
        spared = paint_ventricles(canvas, head, brain, z)
        if lesion is not None:
            mask = paint_lesion(canvas, head, lesion, brain, spared, z)
    return _acquire(rng, canvas, scanner, z), mask


def _acquire(rng: np.random.Generator, canvas: Plane, scanner: _Scanner, z: float) -> Bytes:
    """What a scanner makes of the drawing: bias, blur, noise of a magnitude image -> uint8 [256,256,3]."""
    fade = np.float32(np.clip(1.25 + z, 0.5, 1))
    signal = canvas * scanner.bias * fade
    noise = rng.standard_normal((2, 3, SIZE, SIZE), dtype=np.float32) * np.float32(scanner.noise)
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    for channel in range(3):
        blurred = cv2.GaussianBlur(signal[channel], (0, 0), scanner.blur)
        magnitude = np.hypot(blurred + noise[0, channel], noise[1, channel])
        smooth = cv2.GaussianBlur(magnitude, (3, 3), 0.55) - np.float32(scanner.floor * scanner.noise)
        image[:, :, channel] = np.clip(np.rint(smooth), 0, 255)
    for channel in scanner.missing:
        image[:, :, channel] = image[:, :, FLAIR]
    return image
