"""NIfTI-1 and NIfTI-2 files: a volume whose axial planes are the slices.

Slice k is plane k, as stored, of the voxel axis that runs closest to head and feet. It is shown as
radiologists and the LGG set show it: rows from front to back, columns from the patient's right to left.
`Grid.plane` gives a view, so a mask that is written into a plane lies where its slice was, exactly.
Format: nifti1.h and nifti2.h (NIH); headers are parsed by nibabel.
"""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from engine.sources import endings
from engine.sources.headers import check_size, refused, truncated

ENDINGS: Final = endings.NIFTI
HEADER_BYTES: Final = 540
"""Of the longer header, NIfTI-2's."""
MAX_VOLUME_BYTES: Final = 2**29
"""Of voxels as they are stored: a decode worker holds them while it opens the volume."""
MOST_LABELS: Final = 8
"""A volume of so few different values but zero is a mask or a map of labels, not MRI."""
THICKEST: Final = 2.5
"""Pixels longer than this many times their width show that another plane than the axial one was acquired."""

_GZIP: Final = b"\x1f\x8b"
_LENGTHS: Final = {348: 1, 540: 2}
_MAGICS: Final = (b"n+1\0", b"n+2\0")
_X, _Y, _Z = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a file's voxels are: `affine` [4,4] takes voxel indices to millimetres (right, front, head up).

    `axis` is the voxel axis that slices are counted along; `rows` and `columns` are those that run along a
    slice's rows and columns, and `flip` says which of these two run against the file's own direction.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    axis: int
    rows: int
    columns: int
    flip: tuple[bool, bool]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return self.shape[self.axis]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres from slice to slice, row to row, column to column."""
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(steps[self.axis]), float(steps[self.rows]), float(steps[self.columns])

    @property
    def volume_bytes(self) -> int:
        """Bytes of the voxels as they are stored."""
        return self.shape[0] * self.shape[1] * self.shape[2] * self.dtype.itemsize

    def plane(self, volume: npt.NDArray[Any], number: int) -> npt.NDArray[Any]:
        """Slice `number` of `volume` (of this `shape`) as it is shown, [h,w]: a view, to read or to write."""
        place: list[int | slice] = [slice(None)] * 3
        place[self.axis] = number
        plane = volume[tuple(place)]
        if self.rows > self.columns:
            plane = plane.T
        up, across = (slice(None, None, -1 if flipped else 1) for flipped in self.flip)
        return plane[up, across]

    def to_world(self, number: int) -> npt.NDArray[np.float64]:
        """[4,3]: takes (row, column, 1) of slice `number` to (x, y, z, 1) in millimetres."""
        start = np.zeros(4)
        start[3], start[self.axis] = 1, number
        steps = []
        for axis, flipped in zip((self.rows, self.columns), self.flip, strict=True):
            step = np.zeros(4)
            step[axis] = -1.0 if flipped else 1.0
            start[axis] = self.shape[axis] - 1 if flipped else 0
            steps.append(step)
        matrix: npt.NDArray[np.float64] = self.affine @ np.stack([*steps, start], axis=1)
        return matrix


@dataclass(frozen=True, slots=True)
class Nifti:
    """A file in memory: `voxels` as stored, on `grid`."""

    grid: Grid
    voxels: npt.NDArray[Any]


def read_grid(start: bytes) -> Grid:
    """Where the voxels are of a file that starts with these bytes (`HEADER_BYTES` unpacked ones are enough).

    Raises SliceError, stage `decode`: `empty`, `truncated`, `not_an_image`, `four_d`, `too_large`,
    `unsupported`, `affine`, `orientation`.
    """
    import nibabel
    from nibabel.spatialimages import HeaderDataError

    start = _unpacked_start(start)
    order, version = _version(start)
    kind = nibabel.nifti1.Nifti1Header if version == 1 else nibabel.nifti2.Nifti2Header
    header = kind(start[: kind.template_dtype.itemsize], endianness=order, check=False)
    if header["magic"].item().ljust(4, b"\0")[:4] not in _MAGICS:
        raise refused("unsupported", "the voxels of this header lie in another file: convert it to one .nii")
    shape = _shape(header)
    check_size(*sorted(shape)[1:])
    try:
        dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
        slope, intercept = header.get_slope_inter()
    except (HeaderDataError, KeyError, ValueError, OverflowError) as error:
        raise refused("decode", f"its header is damaged ({error})") from None
    if not np.isfinite([slope or 1.0, intercept or 0.0]).all():
        raise refused("decode", "its header is damaged (a scale that is no number)")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise refused("unsupported", f"voxels of type {dtype.name}: store real numbers or integers")
    if offset < len(start[: kind.template_dtype.itemsize]):
        raise refused("decode", f"its header says that voxels begin at byte {offset}: the file is damaged")
    affine = _affine(header)
    grid = _laid_out(
        shape, affine, dtype, offset, 1.0 if slope is None else float(slope), float(intercept or 0.0)
    )
    if grid.volume_bytes > MAX_VOLUME_BYTES:
        size = f"{grid.volume_bytes:,} bytes of voxels: at most {MAX_VOLUME_BYTES:,} are read"
        raise refused("too_large", size)
    _, high, wide = grid.spacing
    if max(high, wide) > THICKEST * min(high, wide):
        pixels = f"pixels of {high:.2g} x {wide:.2g} mm"
        raise refused("orientation", f"its axial planes have {pixels}: the models know axial series only")
    return grid


def read_nifti(data: bytes) -> Nifti:
    """Take a whole file, packed or not, apart. Raises SliceError as `read_grid`, and for damaged data."""
    grid = read_grid(data)
    end = grid.offset + grid.volume_bytes
    if data.startswith(_GZIP):
        data = _unpacked(data, end)
    if len(data) < end:
        raise truncated()
    voxels = np.frombuffer(data, grid.dtype, grid.volume_bytes // grid.dtype.itemsize, grid.offset)
    return Nifti(grid, voxels.reshape(grid.shape, order="F"))


def _unpacked_start(start: bytes) -> bytes:
    if not start:
        raise refused("empty", "a file of zero bytes: copy it again from its source")
    if start.startswith(_GZIP):
        try:
            start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, HEADER_BYTES)
        except zlib.error as error:
            raise refused("decode", f"damaged compressed data ({error}): copy the file again") from None
        if len(start) < min(_LENGTHS):
            raise truncated()
    return start[:HEADER_BYTES]


def _unpacked(data: bytes, size: int) -> bytes:
    """The first `size` bytes of a gzip file; where they are all of it, its checksum is seen to be right."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            whole = file.read(size)
            # The checksum stands behind the last byte, and is read only when more is asked for.
            file.read(1)
    except EOFError:
        raise truncated() from None
    except (OSError, zlib.error) as error:
        raise refused("decode", f"damaged compressed data ({error}): copy the file again") from None
    return whole


def _version(start: bytes) -> tuple[Literal["<", ">"], int]:
    orders: tuple[Literal["<", ">"], Literal["<", ">"]] = ("<", ">")
    for order in orders:
        length = int(np.frombuffer(start.ljust(4, b"\0"), f"{order}i4", 1)[0])
        if length in _LENGTHS:
            if len(start) < length:
                raise truncated()
            return order, _LENGTHS[length]
    raise refused("not_an_image", "not a NIfTI file, whatever its name says")


def _shape(header: Any) -> tuple[int, int, int]:
    count = int(header["dim"][0])
    sizes = [int(size) for size in header["dim"][1 : count + 1]]
    if not 2 <= count <= 7 or min(sizes) < 1:
        raise refused("decode", "its header gives no size: the file is damaged")
    more = int(np.prod([float(size) for size in sizes[3:]]))
    if more > 1:
        several = f"{more:,} volumes in one file (times, echoes or directions)"
        raise refused("four_d", f"{several}: store one in a file of its own")
    first, second, third = [*sizes[:3], 1][:3]
    return first, second, third


def _affine(header: Any) -> npt.NDArray[np.float64]:
    affine = np.asarray(header.get_best_affine(), np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    sound = bool(np.isfinite(affine).all()) and bool((lengths > 0).all())
    # Directions that lie in one plane place every voxel of the volume there.
    if not sound or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise refused("affine", "its affine places the voxels nowhere: convert it anew from its source")
    return affine


def _laid_out(
    shape: tuple[int, int, int],
    affine: npt.NDArray[np.float64],
    dtype: np.dtype[Any],
    offset: int,
    slope: float,
    intercept: float,
) -> Grid:
    from nibabel.orientations import io_orientation

    runs = io_orientation(affine)
    towards = {int(world): (axis, float(sign)) for axis, (world, sign) in enumerate(runs)}
    rows, front = towards[_Y]
    columns, right = towards[_X]
    return Grid(
        shape=shape,
        affine=affine,
        axis=towards[_Z][0],
        rows=rows,
        columns=columns,
        flip=(front > 0, right > 0),
        dtype=dtype,
        offset=offset,
        slope=slope,
        intercept=intercept,
    )
