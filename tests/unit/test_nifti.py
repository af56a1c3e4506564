"""NIfTI: which planes are the slices, how they are shown, that masks go back, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine.errors import SliceError
from engine.sources.nifti import HEADER_BYTES, read_grid, read_nifti
from tests.volumes import REAL, needs_real, voxels, write_nifti

nibabel = pytest.importorskip("nibabel")

ORIENTATIONS = [
    "".join(letters)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for letters in itertools.product(*axes)
]


def oriented(letters: str, data: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> Any:
    """`data` (towards right, front, head) stored with its axes along `letters`."""
    from nibabel.orientations import axcodes2ornt, ornt_transform

    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(letters))
    return nibabel.Nifti1Image(data, affine).as_reoriented(change)


def failure(data: bytes) -> tuple[str, str]:
    with pytest.raises(SliceError) as caught:
        read_nifti(data)
    return caught.value.failure.stage, caught.value.failure.code


@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_slices_are_axial_and_radiological_however_they_are_stored(letters: str) -> None:
    data = voxels(5, 6, 4)
    affine = np.array([[2.0, 0.1, 0, -7], [-0.1, 2.0, 0.2, 3], [0, -0.2, 3.0, 9], [0, 0, 0, 1]])
    stored = oriented(letters, data, affine)
    volume = read_nifti(stored.to_bytes())
    grid = volume.grid
    assert grid.slices == 4
    assert np.allclose(grid.spacing, (3.0, 2.0, 2.0), rtol=0.02)
    for number in range(4):
        plane = grid.plane(volume.voxels, number)
        from_below = number if "S" in letters else 3 - number
        # Rows from front to back, columns from right to left.
        assert np.array_equal(plane, data[::-1, ::-1, from_below].T)
        corner = grid.to_world(number) @ [0, 0, 1]
        assert np.allclose(corner, affine @ [4, 5, from_below, 1])
        last = grid.to_world(number) @ [plane.shape[0] - 1, plane.shape[1] - 1, 1]
        assert np.allclose(last, affine @ [0, 0, from_below, 1])


@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_a_mask_goes_back_to_the_voxels_that_it_was_found_in(letters: str) -> None:
    truth = voxels(5, 6, 4, seed=1) > 600
    stored = oriented(letters, truth.astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    volume = read_nifti(stored.to_bytes())
    written = np.zeros(volume.grid.shape, np.uint8)
    for number in range(volume.grid.slices):
        volume.grid.plane(written, number)[...] = volume.grid.plane(volume.voxels, number)
    assert np.array_equal(written, np.asarray(stored.dataobj))


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_real_type_is_read_packed_or_not(tmp_path: Path, kind: str, packed: bool) -> None:
    data = voxels(4, 5, 3, top=200).astype(kind)
    header = nibabel.Nifti1Header(endianness=">" if kind[0] == ">" else "<")
    image = nibabel.Nifti1Image(data, np.eye(4), header)
    image.set_data_dtype(np.dtype(kind).newbyteorder("="))
    nibabel.save(image, tmp_path / "a.nii")
    raw = (tmp_path / "a.nii").read_bytes()
    volume = read_nifti(gzip.compress(raw) if packed else raw)
    assert np.array_equal(volume.voxels, data)


def test_the_other_version_is_read_and_its_start_is_enough(tmp_path: Path) -> None:
    data = voxels(4, 5, 3)
    nibabel.save(nibabel.Nifti2Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    packed = (tmp_path / "a.nii.gz").read_bytes()
    assert np.array_equal(read_nifti(packed).voxels, data)
    assert read_grid(gzip.decompress(packed)[:HEADER_BYTES]).slices == 3


def test_a_scale_is_kept_beside_the_voxels(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(4, 5, 3), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    grid = read_grid(image.to_bytes())
    assert (grid.slope, grid.intercept) == (0.5, 10.0)


def test_a_fourth_dimension_of_one_is_none_and_two_dimensions_are_a_slice() -> None:
    assert read_grid(nibabel.Nifti1Image(voxels(4, 5, 3, 1), np.eye(4)).to_bytes()).shape == (4, 5, 3)
    assert read_grid(nibabel.Nifti1Image(voxels(4, 5), np.eye(4)).to_bytes()).shape == (4, 5, 1)


def damaged(**fields: Any) -> bytes:
    """A sound file whose header says something else."""
    image = nibabel.Nifti1Image(voxels(4, 5, 3), np.eye(4))
    raw = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    return bytes(raw)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"\x1f\x8b", "truncated"),
        (b"no volume at all" * 60, "not_an_image"),
        (gzip.compress(b"no volume at all" * 60), "not_an_image"),
        (struct.pack("<i", 348) + bytes(80), "truncated"),
        (damaged(srow_x=0, srow_y=0, srow_z=0, sform_code=1), "affine"),
        (damaged(srow_x=np.nan, sform_code=1), "affine"),
        (damaged(srow_x=[1, 0, 0, 0], srow_y=[1, 0, 0, 0], srow_z=[0, 0, 1, 0], sform_code=1), "affine"),
        (damaged(dim=[3, 4, -5, 3, 1, 1, 1, 1]), "decode"),
        (damaged(dim=[0, 4, 5, 3, 1, 1, 1, 1]), "decode"),
        (damaged(dim=[3, 30_000, 30_000, 30_000, 1, 1, 1, 1]), "too_large"),
        (damaged(dim=[3, 400, 500, 30_000, 1, 1, 1, 1]), "too_large"),
        (damaged(dim=[3, 40, 50, 30, 1, 1, 1, 1]), "truncated"),
        (damaged(dim=[4, 4, 5, 1, 3, 1, 1, 1]), "four_d"),
        (damaged(magic=b"ni1"), "unsupported"),
        (damaged(datatype=32), "unsupported"),
        (damaged(datatype=128), "unsupported"),
        (damaged(datatype=4711), "decode"),
        (damaged(vox_offset=17), "decode"),
        (damaged(scl_slope=1, scl_inter=np.inf), "decode"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(data: bytes, code: str) -> None:
    assert failure(data) == ("decode", code)


def test_a_packed_file_that_is_cut_short_or_damaged_is_told_apart() -> None:
    packed = gzip.compress(nibabel.Nifti1Image(voxels(20, 20, 20), np.eye(4)).to_bytes())
    for end in (len(packed) // 2, len(packed) - 8, len(packed) - 1):
        assert failure(packed[:end])[1] == "truncated"
    middle = bytearray(packed)
    middle[len(middle) // 2] ^= 0x55
    assert failure(bytes(middle))[1] in ("decode", "truncated")
    checksum = bytearray(packed)
    checksum[-7] ^= 0x55
    assert failure(bytes(checksum))[1] == "decode"


def test_a_series_of_thick_sagittal_slices_is_refused_and_one_of_thin_slices_is_not() -> None:
    thick = np.array([[0, 0, 5.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    thin = thick.copy()
    thin[0, 2] = 1.2
    assert failure(nibabel.Nifti1Image(voxels(8, 8, 4), thick).to_bytes())[1] == "orientation"
    assert read_nifti(nibabel.Nifti1Image(voxels(8, 9, 4), thin).to_bytes()).grid.slices == 9


@needs_real
def test_a_real_volume_is_shown_as_nibabel_places_it() -> None:
    for path in sorted(REAL.glob("*_t*.nii.gz")):
        volume = read_nifti(path.read_bytes())
        ras = nibabel.as_closest_canonical(nibabel.load(path))
        expected = np.asarray(ras.dataobj)[::-1, ::-1, 13].T
        assert np.array_equal(volume.grid.plane(volume.voxels, 13), expected)


def test_made_files_are_what_they_are_made_of(tmp_path: Path) -> None:
    data = voxels(6, 5, 4)
    assert np.array_equal(read_nifti(write_nifti(tmp_path / "a.nii.gz", data).read_bytes()).voxels, data)
