"""Masks as volumes: a known mask comes back from NIfTI and DICOM SEG, voxel for voxel, wherever it lies."""

from __future__ import annotations

import dataclasses
import gc
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine.errors import MachineError
from engine.ledger import SliceRow
from engine.outputs import dicom_seg
from engine.outputs.dicom_seg import expect_seg
from engine.outputs.pseudonyms import Pseudonyms
from engine.rows import with_mask
from engine.volumes import find_space, kind_of, write_mask_volume
from tests.dicomseries import DIRECTIONS, IDENTITY, PATIENT, series

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

Volume = npt.NDArray[np.uint8]

# highdicom keeps a database in memory for each of its images and does not close it, which Python 3.13 tells.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")


@pytest.fixture(autouse=True)
def no_image_is_left_to_other_tests() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def row(path: Path, number: int, mask: Volume | None, stem: bytes = b"s") -> SliceRow:
    plain = SliceRow(
        number.to_bytes(2, "big"), number, str(path), str(path), "ok", 1, 1, tumor_probability=0.9, stem=stem
    )
    return with_mask(plain, mask)


def save(path: Path, mask_of: Any, count: int, **options: Any) -> str:
    """Write the volume's mask at `path`, of slices whose masks `mask_of(k)` gives."""
    rows = [mask_of(number) for number in range(count)]
    kind = kind_of(rows[0])
    return write_mask_volume(iter(rows), find_space(iter(rows), kind), path, **options)


def nifti(path: Path, shape: tuple[int, int, int], affine: npt.NDArray[np.float64], version: int = 1) -> None:
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine)
    image.header["descrip"] = PATIENT.encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", IDENTITY.encode()))
    nibabel.save(image, path)


ORIENTATIONS = ["".join(axes) for axes in product("LR", "AP", "SI")] + ["SPL", "ASR", "PIR", "IRA"]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_comes_back_from_nifti_in_every_orientation(tmp_path: Path, orientation: str) -> None:
    source, target = tmp_path / "a.nii.gz", tmp_path / "volumes" / "a.nii.gz_mask.nii.gz"
    shape = (6, 7, 5)
    affine = np.eye(4)
    affine[:3, :3] = 0
    affine[:3, 3] = (-20.5, 31.25, 7)
    for axis, letter in enumerate(orientation):
        world = next(number for number, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        affine[world, axis] = (0.9, 1.1, 3.0)[world] * (1 if letter in "RAS" else -1)
    assert "".join(nibabel.aff2axcodes(affine)) == orientation
    nifti(source, shape, affine)
    space = find_space([row(source, 0, None)], "nifti")
    grid = space.grid
    assert grid is not None
    truth = (np.random.default_rng(3).random(shape) < 0.3).astype(np.uint8)
    assert (
        save(target, lambda k: row(source, k, np.ascontiguousarray(grid.plane(truth, k))), grid.slices) == ""
    )
    written, original = nibabel.load(target), nibabel.load(source)
    np.testing.assert_array_equal(np.asarray(written.dataobj), truth)
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, original.affine)
    for name in ("qform_code", "sform_code", "pixdim", "xyzt_units", "quatern_b", "srow_x"):
        np.testing.assert_array_equal(written.header[name], original.header[name])
    assert space.voxel_ml == pytest.approx(0.9 * 1.1 * 3.0 / 1000)


@pytest.mark.parametrize(("ending", "version"), [(".nii", 1), (".nii", 2), (".nii.gz", 2)])
def test_either_version_of_nifti_packed_or_not_gives_a_mask_of_the_same_version(
    tmp_path: Path, ending: str, version: int
) -> None:
    source, target = tmp_path / f"a{ending}", tmp_path / "mask.nii.gz"
    nifti(source, (4, 5, 3), np.diag([1.0, 1.0, 2.0, 1.0]), version)
    mask = np.zeros((5, 4), np.uint8)
    mask[1, 2] = 1
    save(target, lambda k: row(source, k, mask if k == 2 else None), 3)
    written = nibabel.load(target)
    assert type(written) is (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image)
    assert np.asarray(written.dataobj).sum() == 1


def test_a_nifti_mask_says_nothing_of_the_patient_and_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    source, target = tmp_path / "a.nii", tmp_path / "mask.nii.gz"
    nifti(source, (4, 4, 3), np.eye(4))
    save(target, lambda k: row(source, k, None), 3)
    first = target.read_bytes()
    unpacked = bytes(nibabel.load(target).to_bytes())
    assert PATIENT.encode() not in unpacked
    assert IDENTITY.encode() not in unpacked
    save(target, lambda k: row(source, k, None), 3)
    assert target.read_bytes() == first


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_mask_comes_back_from_dicom_seg_and_lies_where_its_slices_do(tmp_path: Path, name: str) -> None:
    paths = series(tmp_path, 5, DIRECTIONS[name])
    truth = (np.random.default_rng(5).random((5, 8, 10)) < 0.3).astype(np.uint8)
    truth[2] = 0
    target = tmp_path / "volumes" / "series_mask.dcm"
    rows = [row(path, 0, mask if mask.any() else None) for path, mask in zip(paths, truth, strict=True)]
    space = find_space(rows, "dicom")
    assert write_mask_volume(rows, space, target) == ""
    assert space.voxel_ml == pytest.approx(0.5 * 0.75 * 3.0 / 1000)

    seg = highdicom.seg.segread(target)
    sources = {pydicom.dcmread(path).SOPInstanceUID: place for place, path in enumerate(paths)}
    back = seg.get_pixels_by_source_instance(
        list(sources), ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(back[..., 0], truth)

    read = pydicom.dcmread(target)
    shared = read.SharedFunctionalGroupsSequence[0]
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == pytest.approx(DIRECTIONS[name])
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == [0.5, 0.75]
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == pytest.approx(3.0)
    assert read.NumberOfFrames == 4
    for frame, own in zip(read.pixel_array, read.PerFrameFunctionalGroupsSequence, strict=True):
        uid = own.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        source = pydicom.dcmread(paths[sources[uid]])
        np.testing.assert_array_equal(frame, truth[sources[uid]])
        place = list(own.PlanePositionSequence[0].ImagePositionPatient)
        assert place == pytest.approx(list(source.ImagePositionPatient))
        assert (read.StudyInstanceUID, read.FrameOfReferenceUID) == (
            source.StudyInstanceUID,
            source.FrameOfReferenceUID,
        )


def test_a_segmentation_names_no_patient_unless_it_is_asked_to(tmp_path: Path) -> None:
    paths = series(tmp_path, 3, DIRECTIONS["axial"])
    rows = [row(path, 0, np.ones((8, 10), np.uint8)) for path in paths]
    target = tmp_path / "mask.dcm"
    space = find_space(rows, "dicom")
    write_mask_volume(rows, space, target)
    first = target.read_bytes()
    for word in (b"Doe", b"MRN-4711", b"19700101", b"A-99", b"Jane", b"Elsewhere"):
        assert word not in first
    write_mask_volume(rows, space, target)
    assert target.read_bytes() == first
    write_mask_volume(rows, space, target, keep_patient=True)
    kept = pydicom.dcmread(target)
    assert (kept.PatientName, kept.PatientID) == (PATIENT, IDENTITY)


def test_with_pseudonyms_a_segmentation_has_other_uids_and_no_date(tmp_path: Path) -> None:
    paths = series(tmp_path, 2, DIRECTIONS["axial"])
    rows = [row(path, 0, np.ones((8, 10), np.uint8)) for path in paths]
    target = tmp_path / "mask.dcm"
    write_mask_volume(rows, find_space(rows, "dicom"), target, pseudonyms=Pseudonyms(b"k" * 32))
    data, source = target.read_bytes(), pydicom.dcmread(paths[0])
    for word in (source.SOPInstanceUID, source.SeriesInstanceUID, source.StudyInstanceUID, "20240102"):
        assert word.encode() not in data
    assert pydicom.dcmread(target).pixel_array.sum() == 2 * 80


def enhanced(path: Path, frames: int, height: int = 8, width: int = 10) -> None:
    """One enhanced file that holds the frames of a series, each with its own pixel measures."""
    (source,) = series(path.parent, 1, DIRECTIONS["axial"], height=height, width=width)
    data = pydicom.dcmread(source)
    source.unlink()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del data[name]
    shared = pydicom.Dataset()
    shared.PlaneOrientationSequence = [pydicom.Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = list(DIRECTIONS["axial"])
    data.SharedFunctionalGroupsSequence, each = [shared], []
    for number in range(frames):
        own = pydicom.Dataset()
        own.PlanePositionSequence, own.PixelMeasuresSequence = [pydicom.Dataset()], [pydicom.Dataset()]
        own.PlanePositionSequence[0].ImagePositionPatient = [0.0, 0.0, 2.0 * number]
        own.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.75]
        each.append(own)
    data.PerFrameFunctionalGroupsSequence, data.NumberOfFrames = each, frames
    data.PixelData = bytes(2 * frames * height * width)
    data.save_as(path)


def test_frames_of_one_file_become_frames_of_the_segmentation(tmp_path: Path) -> None:
    source, target = tmp_path / "enhanced.dcm", tmp_path / "mask.dcm"
    enhanced(source, 6)
    mask = np.zeros((8, 10), np.uint8)
    mask[5:7, 3:9] = 1
    assert save(target, lambda k: row(source, k, mask if k in (1, 4) else None), 6) == ""
    read = pydicom.dcmread(target)
    np.testing.assert_array_equal(read.pixel_array, np.stack([mask, mask]))
    frames = {
        own.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber: float(
            own.PlanePositionSequence[0].ImagePositionPatient[2]
        )
        for own in read.PerFrameFunctionalGroupsSequence
    }
    assert frames == {2: 2.0, 5: 8.0}


def test_a_series_that_says_not_where_it_lies_has_no_segmentation_and_says_so(tmp_path: Path) -> None:
    paths = series(tmp_path, 2, DIRECTIONS["axial"])
    data = pydicom.dcmread(paths[1])
    del data.ImagePositionPatient
    data.save_as(paths[1])
    rows = [row(path, 0, np.ones((8, 10), np.uint8)) for path in paths]
    space = find_space(rows, "dicom")
    assert (space.voxel_ml, space.note) == (None, "its headers do not say where its slices lie")
    assert write_mask_volume(rows, space, tmp_path / "mask.dcm") == "no DICOM SEG"
    assert not (tmp_path / "mask.dcm").exists()


def test_a_source_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        MachineError, match=r"a\.nii: cannot be read again for its mask volume \(No such file"
    ):
        find_space([row(tmp_path / "a.nii", 0, None)], "nifti")


def test_without_highdicom_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_seg, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"pip install 'tumorscan\[medical\]'"):
        expect_seg()


def test_a_source_whose_name_is_no_utf8_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nifti(tmp_path / "a.nii", (4, 5, 3), np.eye(4))
    (tmp_path / "a.nii").rename(tmp_path / "\udcff.nii")
    rows = [dataclasses.replace(row(tmp_path, 0, None), image_path="\\xff.nii")]
    assert find_space(rows, kind_of(rows[0])).sources == (b"\xff.nii",)
