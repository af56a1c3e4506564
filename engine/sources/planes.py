"""Volumes in memory: the planes of a sequence as they are stored, and where each lies in the scanner.

What several sequences of a patient have in common is the scanner's space, so one is looked up in another
there, in millimetres towards the patient's right, front and head (NIfTI's directions; DICOM's are turned).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.errors import SliceError
from engine.sources.dicom import Frame
from engine.sources.dicom_pixels import Pixels
from engine.sources.headers import refused
from engine.sources.nifti import MOST_LABELS, Nifti
from engine.sources.volumes import Window
from engine.sources.windows import Tally, apply

Image = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float64]

_NO_STEP: Final = 1e-3
"""Millimetres between slices that lie in one place."""
_TURNED: Final = np.diag([-1.0, -1.0, 1.0])
"""DICOM counts millimetres to the left and the back, NIfTI to the right and the front."""


def nifti_window(volume: Nifti) -> Window | None:
    """The window of a NIfTI file, None where it holds zeros alone. SliceError `labels` for a mask."""
    tally = Tally()
    for number in range(volume.grid.slices):
        tally.add(volume.grid.plane(volume.voxels, number), volume.grid.slope, volume.grid.intercept)
    found = tally.window()
    if found is not None and not tally.distinct(MOST_LABELS + 1):
        raise refused("labels", f"at most {MOST_LABELS} different values: a mask or a map of labels, not MRI")
    return found


def nifti_images(volume: Nifti) -> list[Image]:
    """All slices in 0..255. Bytes are taken as they are. Raises SliceError `labels`."""
    grid, shared = volume.grid, nifti_window(volume)
    planes = (grid.plane(volume.voxels, number) for number in range(grid.slices))
    if grid.dtype == np.uint8 and (grid.slope, grid.intercept) == (1.0, 0.0):
        return [np.ascontiguousarray(plane) for plane in planes]
    if shared is None:
        return [np.zeros(plane.shape, np.uint8) for plane in planes]
    return [apply(shared, plane.astype(np.float64) * grid.slope + grid.intercept) for plane in planes]


def dicom_window(files: Iterator[Pixels]) -> Window | None:
    """The window of a DICOM series whose files agree on none; None where all is zero.

    Frames that cannot be decoded count for nothing.
    """
    tally = Tally()
    for pixels in files:
        with suppress(SliceError):
            pixels.count(tally)
    return tally.window()


@dataclass(frozen=True, slots=True)
class Lookup:
    """A sequence that can be looked up: `values` [n,h,w], and what finds (slice, row, column) of points."""

    values: npt.NDArray[Any]
    window: Window | None
    scale: tuple[float, float]
    places: Callable[[Reals], Reals]

    def look_up(self, to_world: Reals, height: int, width: int) -> Image:
        """This sequence where another's slice lies, in 0..255: linear between voxels, 0 where it ends.

        `to_world` [4,3] takes (row, column, 1) of that slice to (x, y, z, 1).
        """
        if self.window is None:
            return np.zeros((height, width), np.uint8)
        rows, columns = np.mgrid[:height, :width].reshape(2, -1)
        points = to_world @ np.stack([rows, columns, np.ones_like(rows)])
        found, inside = sampled(self.values, self.places(points[:3]))
        slope, intercept = self.scale
        image = apply(self.window, found * slope + intercept)
        image[~inside] = 0
        return image.reshape(height, width)


def nifti_sequence(volume: Nifti) -> Lookup:
    """A file that can be looked up."""
    grid = volume.grid
    back = np.linalg.inv(grid.affine)
    return Lookup(
        volume.voxels,
        nifti_window(volume),
        (grid.slope, grid.intercept),
        lambda points: back[:3, :3] @ points + back[:3, 3:],
    )


def dicom_to_world(frame: Frame) -> Reals:
    """[4,3]: takes (row, column, 1) to (x, y, z, 1). SliceError `geometry` where the file does not say it."""
    if frame.position is None or frame.directions is None or frame.spacing is None:
        raise refused("geometry", "it does not say where it lies, so that sequences cannot be combined")
    along, down = np.array(frame.directions[:3]), np.array(frame.directions[3:])
    to_world = np.zeros((4, 3))
    steps = [down * frame.spacing[0], along * frame.spacing[1], np.array(frame.position)]
    to_world[:3] = _TURNED @ np.stack(steps, axis=1)
    to_world[3, 2] = 1.0
    return to_world


def dicom_sequence(
    values: Sequence[npt.NDArray[Any]], to_world: Sequence[Reals], window: Window | None
) -> Lookup:
    """A series that can be looked up; its slices [h,w] may be unevenly spaced.

    Raises SliceError `geometry` for slices of several sizes or directions, or several in one place.
    """
    down, along = to_world[0][:3, 0], to_world[0][:3, 1]
    normal = np.cross(along, down) / np.linalg.norm(np.cross(along, down))
    starts = np.stack([each[:3, 2] for each in to_world], axis=1)
    order = np.argsort(normal @ starts, kind="stable")
    starts = starts[:, order]
    heights = normal @ starts
    same_size = len({each.shape for each in values}) == 1
    alike = same_size and all(np.allclose(each[:, :2], to_world[0][:, :2], atol=1e-4) for each in to_world)
    if not alike or np.diff(heights, append=np.inf).min() < _NO_STEP:
        raise refused("geometry", "its slices differ in size or direction, or several lie in one place")
    steps = np.linalg.pinv(np.stack([down, along], axis=1))

    def find(points: Reals) -> Reals:
        number = _numbered(normal @ points, heights)
        # Where slices begin may drift from one to the next: a gantry that is tilted.
        begun = np.stack([np.interp(number, np.arange(len(heights)), axis) for axis in starts])
        row, column = steps @ (points - begun)
        return np.stack([number, row, column])

    return Lookup(np.stack([values[place] for place in order]), window, (1.0, 0.0), find)


def _numbered(heights: Reals, of_slices: Reals) -> Reals:
    """Between which slices points at `heights` lie: 1.5 is halfway from slice 1 to slice 2."""
    last = len(of_slices) - 1
    first_step, last_step = (of_slices[1] - of_slices[0], of_slices[-1] - of_slices[-2]) if last else (1, 1)
    number = np.interp(heights, of_slices, np.arange(last + 1.0))
    number = np.where(heights < of_slices[0], (heights - of_slices[0]) / first_step, number)
    beyond = last + (heights - of_slices[-1]) / last_step
    return np.asarray(np.where(heights > of_slices[-1], beyond, number), np.float64)


def sampled(
    values: npt.NDArray[Any], places: Reals, margin: float = 0.5
) -> tuple[Reals, npt.NDArray[np.bool_]]:
    """`values` [a,b,c] at `places` [3,n], linear between voxels; and which of these lie inside.

    Up to `margin` voxels beyond the outermost centres counts as inside: a voxel is not a point.
    """
    limits = np.array(values.shape, np.float64)[:, np.newaxis] - 1
    inside: npt.NDArray[np.bool_] = np.all((places >= -margin) & (places <= limits + margin), axis=0)
    held = np.clip(places, 0.0, limits)
    below = np.minimum(np.floor(held), np.maximum(limits - 1, 0)).astype(np.intp)
    above = np.minimum(below + 1, limits.astype(np.intp))
    part = held - below
    total = np.zeros(places.shape[1])
    for corner in range(8):
        far = [bool(corner >> axis & 1) for axis in range(3)]
        index = tuple((above if far[axis] else below)[axis] for axis in range(3))
        weight = np.prod([part[axis] if far[axis] else 1 - part[axis] for axis in range(3)], axis=0)
        total += weight * values[index]
    return total, inside
