"""Where a volume's slices lie, and its mask as a file of the source's own form: NIfTI or DICOM SEG."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from engine.cloud.addresses import is_address
from engine.errors import MachineError, SliceError
from engine.ledger import SliceRow
from engine.outputs.dicom_seg import Planes, expect_seg, write_dicom_seg
from engine.outputs.nifti import write_nifti_mask
from engine.outputs.pseudonyms import Pseudonyms
from engine.outputs.rle import decode
from engine.sources import dicom, nifti
from engine.sources.dicom import Frame
from engine.sources.discovery import ENDINGS as PICTURES
from engine.sources.nifti import Grid
from engine.sources.series import START_BYTES, Start, start_of
from engine.text import shown

Kind = Literal["nifti", "dicom", "pictures"]

_ESCAPED: Final = re.compile(rb"\\x([89a-f][0-9a-f])")
_MM3_PER_ML: Final = 1000.0
_SAME: Final = 1e-4
"""Directions and millimetres that differ by less are the same, as highdicom holds it."""


@dataclass(frozen=True, slots=True)
class Space:
    """Where the slices of a volume lie.

    `voxel_ml` is None where that is not known; `note` says what is odd. `sources` are the paths of its files
    in order. A NIfTI file has its `grid` and `start`, the bytes that it begins with; a DICOM series its
    `planes`, unless it does not say where they are.
    """

    kind: Kind
    voxel_ml: float | None = None
    note: str = ""
    sources: tuple[bytes, ...] = ()
    grid: Grid | None = None
    start: bytes = b""
    planes: Planes | None = None


def kind_of(row: SliceRow) -> Kind:
    """What kind of volume a scored slice is of, told by its file. Raises MachineError where that is gone."""
    name = os.fsencode(row.image_path).lower()
    if name.endswith(nifti.ENDINGS):
        return "nifti"
    if name.endswith(dicom.ENDINGS):
        return "dicom"
    if name.endswith(PICTURES) or is_address(name):  # DICOM is read from disks
        return "pictures"
    start = _start(source_of(row), start_of)
    return "dicom" if start[dicom.MAGIC_AT :].startswith(dicom.MAGIC) else "pictures"


def find_space(rows: Iterable[SliceRow], kind: Kind, start: Start = start_of) -> Space:
    """Where these scored slices of a volume lie; `start` reads the first bytes of a NIfTI file.

    Raises MachineError for a file that cannot be read again.
    """
    if kind == "pictures":
        return Space(kind)
    if kind == "nifti":
        source = source_of(next(iter(rows)))
        try:
            begun = _start(source, start)
            grid = nifti.read_grid(begun)
        except SliceError as error:
            raise _gone(source, error.failure.message) from error
        voxel_ml = abs(float(np.linalg.det(grid.affine[:3, :3]))) / _MM3_PER_ML
        return Space(kind, voxel_ml, "", (source,), grid=grid, start=begun)
    return _series(rows)


def write_mask_volume(
    rows: Iterable[SliceRow],
    space: Space,
    path: Path,
    *,
    keep_patient: bool = False,
    pseudonyms: Pseudonyms | None = None,
) -> str:
    """Write the masks of a volume's scored slices as one file at `path`; what is wrong, "" when it is there.

    Raises MachineError where highdicom is missing; OSError.
    """
    if space.grid is not None:
        voxels = np.zeros(space.grid.shape, np.uint8)
        for row in rows:
            if row.mask_rle:
                space.grid.plane(voxels, row.slice)[...] = decode(row.mask_rle)
        write_nifti_mask(path, voxels, space.start)
        return ""
    if space.planes is None:
        return "no DICOM SEG"
    expect_seg()
    try:
        masks = _stacked(rows, len(space.planes.positions), by_frame=len(space.sources) == 1)
        rename = None if pseudonyms is None else pseudonyms.of_uid
        write_dicom_seg(path, masks, space.sources, space.planes, keep_patient=keep_patient, rename=rename)
    except ValueError as error:
        return f"no DICOM SEG: {' '.join(str(error).split())}"
    return ""


def source_of(row: SliceRow) -> bytes:
    """The path of the row's file; its text shows bytes that are no UTF-8 as \\xHH."""
    path = os.fsencode(row.image_path)
    if is_address(path) or os.path.exists(path):  # noqa: PTH110 - the path is bytes
        return path
    return _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), path)


def _series(rows: Iterable[SliceRow]) -> Space:
    """A DICOM series: files of one frame each, or one file of many."""
    sources: list[bytes] = []
    frames: list[Frame] = []
    for _, slices in groupby(rows, key=lambda row: row.image_path):
        sources.append(source_of(next(slices)))
        frames += _frames(sources[-1])
    note = dicom.uneven(frame.height for frame in frames)
    if len(sources) not in (1, len(frames)):
        note = "its frames are spread over several files"
        return Space("dicom", None, note, tuple(sources))
    first = frames[0]
    placed = [frame.position for frame in frames if frame.position is not None]
    if first.directions is None or first.spacing is None or len(placed) < len(frames):
        return Space("dicom", None, "its headers do not say where its slices lie", tuple(sources))
    if not all(_alike(frame, first) for frame in frames):
        return Space("dicom", None, "its slices differ in direction or spacing", tuple(sources))
    heights = sorted({frame.height or 0.0 for frame in frames})
    step = median(b - a for a, b in pairwise(heights)) if len(heights) > 1 else None
    voxel_ml = None if step is None else step * first.spacing[0] * first.spacing[1] / _MM3_PER_ML
    planes = Planes(placed, first.directions, first.spacing, step)
    return Space("dicom", voxel_ml, note, tuple(sources), planes=planes)


def _alike(one: Frame, other: Frame) -> bool:
    """Whether two frames have one direction and spacing, up to rounding."""
    return all(
        first is not None and second is not None and np.allclose(first, second, rtol=0, atol=_SAME)
        for first, second in ((one.directions, other.directions), (one.spacing, other.spacing))
    )


def _frames(source: bytes) -> tuple[Frame, ...]:
    try:
        with open(source, "rb") as file:
            return dicom.read_header(file, whatever_it_starts_with=True).frames
    except OSError as error:
        raise _gone(source, error.strerror or str(error)) from error
    except SliceError as error:
        raise _gone(source, error.failure.message) from error


def _stacked(rows: Iterable[SliceRow], frames: int, *, by_frame: bool) -> npt.NDArray[np.uint8]:
    """The masks of a series, [frames,h,w]. ValueError where slices differ in size."""
    stack: npt.NDArray[np.uint8] | None = None
    for number, row in enumerate(rows):
        if not row.mask_rle:
            continue
        mask = decode(row.mask_rle)
        if stack is None:
            stack = np.zeros((frames, *mask.shape), np.uint8)
        if stack.shape[1:] != mask.shape:
            raise ValueError("its slices differ in size")
        stack[row.slice if by_frame else number] = mask
    if stack is None:
        raise ValueError("it has no mask")
    return stack


def _start(source: bytes, start: Start) -> bytes:
    try:
        return start(source, START_BYTES)
    except OSError as error:
        raise _gone(source, error.strerror or str(error)) from error
    except SliceError as error:
        raise _gone(source, error.failure.message) from error


def _gone(source: bytes, why: str) -> MachineError:
    return MachineError(
        f"{shown(source)}: cannot be read again for its mask volume ({why}): put it back as it was, then run "
        "the same command"
    )
