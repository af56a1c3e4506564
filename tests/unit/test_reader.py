"""Slices of volumes as a worker reads them: one window, one opening, and faults laid where they belong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine.errors import SliceError
from engine.sources import reader as reader_module
from engine.sources.again import Again
from engine.sources.discovery import Discovery, SourceFile
from engine.sources.entries import pages_of
from engine.sources.reader import VolumeReader
from engine.sources.volumes import Source, Window, recipe
from engine.sources.windows import Tally, apply
from tests.badfiles import tiff
from tests.volumes import REAL, dicom, needs_real, tiff_pages, voxels, write_dicom, write_nifti

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("pydicom")


class Heard:
    """What a reader said that it was at."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def opens(self) -> None:
        self.said.append("opens")

    def reads(self) -> None:
        self.said.append("reads")

    def decodes(self) -> None:
        self.said.append("decodes")


def source(kind: Any, *paths: Path, window: Window | None = None) -> Source:
    return Source(kind, tuple(os.fsencode(path) for path in paths), window)


def read(told: str, path: Path, number: int) -> npt.NDArray[np.uint8]:
    return VolumeReader().read(told, os.fsencode(path), number).pixels


def shared_window(*planes: npt.NDArray[Any]) -> Window:
    tally = Tally()
    for plane in planes:
        tally.add(plane)
    found = tally.window()
    assert found is not None
    return found


def test_all_pages_of_a_tiff_share_one_window_but_those_of_bytes(tmp_path: Path) -> None:
    pages = [voxels(6, 7, dtype=np.uint16, seed=n, top=1000 * (n + 1)) for n in range(3)]
    small = voxels(6, 7, dtype=np.uint8, top=200)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_pages([*pages, small]))
    told = recipe([source("pages", path)])
    for number, page in enumerate(pages):
        assert np.array_equal(read(told, path, number), apply(shared_window(*pages), page))
    assert np.array_equal(read(told, path, 3), small)


def test_a_damaged_page_costs_itself_only(tmp_path: Path) -> None:
    good, bad = voxels(6, 7, dtype=np.uint16), voxels(6, 7, 5, dtype=np.uint16)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_pages([good, bad, good]))
    told = recipe([source("pages", path)])
    reader = VolumeReader()
    with pytest.raises(SliceError, match="channels"):
        reader.read(told, b"", 1)
    assert np.array_equal(reader.read(told, b"", 2).pixels, apply(shared_window(good, good), good))


def test_all_slices_of_a_nifti_file_share_one_window(tmp_path: Path) -> None:
    data = voxels(5, 6, 4) * np.array([1, 2, 3, 4], np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", data)
    expected = apply(shared_window(data), data[::-1, ::-1, 3].T)
    piece = VolumeReader().read(recipe([source("nifti", path)]), os.fsencode(path), 3)
    assert np.array_equal(piece.pixels, expected)
    assert (piece.size, piece.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)


def test_bytes_of_a_nifti_file_are_taken_as_they_are(tmp_path: Path) -> None:
    data = voxels(5, 6, 4, dtype=np.uint8, top=90)
    path = write_nifti(tmp_path / "a.nii", data)
    assert np.array_equal(read(recipe([source("nifti", path)]), path, 0), data[::-1, ::-1, 0].T)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_a_mask_is_no_volume_and_a_blank_volume_is_one(tmp_path: Path, kind: Any) -> None:
    mask = write_nifti(tmp_path / "mask.nii", (voxels(5, 6, 4) % 5).astype(kind))
    with pytest.raises(SliceError) as caught:
        read(recipe([source("nifti", mask)]), mask, 0)
    assert caught.value.failure.code == "labels"
    blank = write_nifti(tmp_path / "blank.nii", np.zeros((5, 6, 4), kind))
    assert not read(recipe([source("nifti", blank)]), blank, 0).any()


def test_a_volume_is_opened_once_and_so_is_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    whole = reader_module.read_nifti
    monkeypatch.setattr(reader_module, "read_nifti", lambda data: opened.append(len(data)) or whole(data))
    good = write_nifti(tmp_path / "good.nii", voxels(5, 6, 4))
    bad = tmp_path / "bad.nii"
    bad.write_bytes(good.read_bytes()[:-10])
    reader = VolumeReader()
    for _ in range(3):
        reader.read(recipe([source("nifti", good)]), b"", 0)
    for _ in range(3):
        with pytest.raises(SliceError) as caught:
            reader.read(recipe([source("nifti", bad)]), b"", 0)
        assert caught.value.failure.code == "truncated"
    assert len(opened) == 2


def series(folder: Path, count: int = 3, **more: Any) -> list[Path]:
    return [
        write_dicom(
            folder / f"{number}.dcm",
            dicom(
                voxels(6, 5, dtype=np.uint16, seed=number, top=700 * (number + 1)),
                height=4.0 * number,
                instance=number + 1,
                **more,
            ),
        )
        for number in range(count)
    ]


def pixels_of(path: Path) -> npt.NDArray[Any]:
    import pydicom

    return pydicom.dcmread(path).pixel_array


def test_a_series_has_the_window_that_its_files_agree_on_else_one_of_all(tmp_path: Path) -> None:
    paths = series(tmp_path)
    images = [pixels_of(path) for path in paths]
    agreed = Window(100.0, 400.0)
    for number, path in enumerate(paths):
        told = recipe([source("dicom", *paths, window=agreed)])
        assert np.array_equal(read(told, path, 0), apply(agreed, images[number]))
        own = read(recipe([source("dicom", *paths)]), path, 0)
        assert np.array_equal(own, apply(shared_window(*images), images[number]))


def test_a_damaged_file_leaves_its_series_a_window_and_one_that_may_yet_be_read_does_not(
    tmp_path: Path,
) -> None:
    paths = series(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    told = recipe([source("dicom", *paths)])
    reader = VolumeReader()
    expected = shared_window(pixels_of(paths[0]), pixels_of(paths[2]))
    assert np.array_equal(
        reader.read(told, os.fsencode(paths[0]), 0).pixels, apply(expected, pixels_of(paths[0]))
    )
    with pytest.raises(SliceError) as caught:
        reader.read(told, os.fsencode(paths[1]), 0)
    assert caught.value.failure.code == "truncated"
    paths[1].unlink()
    with pytest.raises(SliceError) as caught:
        read(told, paths[0], 0)
    assert caught.value.failure.transient


def test_what_a_reader_is_at_tells_a_volume_from_a_slice(tmp_path: Path) -> None:
    paths = series(tmp_path)
    heard = Heard()
    reader = VolumeReader(heard)
    told = recipe([source("dicom", *paths)])
    reader.read(told, os.fsencode(paths[2]), 0)
    assert heard.said == ["opens", *["opens"] * 3, "reads", "decodes"]
    reader.read(told, os.fsencode(paths[0]), 0)
    assert heard.said[6:] == ["reads", "decodes"]


def test_frames_of_one_file_are_slices(tmp_path: Path) -> None:
    volume = voxels(4, 6, 5, dtype=np.uint16)
    path = write_dicom(tmp_path / "a.dcm", dicom(volume))
    told = recipe([source("dicom", path)])
    for number in (3, 0, 2):
        assert np.array_equal(read(told, path, number), apply(shared_window(volume), volume[number]))
    with pytest.raises(SliceError, match="no frame 4"):
        read(told, path, 4)


def test_sequences_on_one_grid_become_the_channels_and_a_missing_one_is_flair(tmp_path: Path) -> None:
    t1, flair = (voxels(5, 6, 4, seed=n) for n in range(2))
    paths = [write_nifti(tmp_path / f"{n}.nii.gz", data) for n, data in enumerate((t1, flair))]
    told = recipe([source("nifti", paths[0]), source("nifti", paths[1]), None])
    image = read(told, paths[1], 2)
    assert np.array_equal(image[..., 0], apply(shared_window(t1), t1[::-1, ::-1, 2].T))
    assert np.array_equal(image[..., 1], apply(shared_window(flair), flair[::-1, ::-1, 2].T))
    assert np.array_equal(image[..., 2], image[..., 1])


def ramp(shape: tuple[int, int, int], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """A volume whose values are linear in millimetres, so that looking it up anywhere is exact."""
    places = np.indices(shape).reshape(3, -1)
    x, y, z = affine[:3, :3] @ places + affine[:3, 3:]
    return (500 + 3 * x - 2 * y + 5 * z).reshape(shape).astype(np.float32)


def test_a_sequence_on_another_grid_is_looked_up_where_flair_lies(tmp_path: Path) -> None:
    affine = np.array([[2.0, 0.3, 0, -6], [-0.3, 2.0, 0.4, 3], [0, -0.4, 4.0, 2], [0, 0, 0, 1]])
    wide = np.diag([1.5, 1.7, 3.0, 1.0])
    wide[:3, 3] = -30
    flair, t1 = ramp((8, 9, 5), affine), ramp((40, 40, 40), wide)
    paths = [write_nifti(tmp_path / "flair.nii", flair, affine), write_nifti(tmp_path / "t1.nii", t1, wide)]
    image = read(recipe([source("nifti", paths[1]), source("nifti", paths[0]), None]), paths[0], 2)
    expected = apply(shared_window(t1), flair[::-1, ::-1, 2].T)
    assert np.abs(image[..., 0].astype(int) - expected).max() <= 1


def test_where_a_sequence_does_not_reach_its_channel_is_dark(tmp_path: Path) -> None:
    flair = write_nifti(tmp_path / "flair.nii", voxels(8, 8, 6))
    t1 = write_nifti(tmp_path / "t1.nii", voxels(8, 4, 6))
    image = read(recipe([source("nifti", t1), source("nifti", flair), None]), flair, 3)
    assert not image[:4, :, 0].any()
    assert image[4:, :, 0].any()


def test_a_dicom_series_is_looked_up_too_with_slices_missing_or_not(tmp_path: Path) -> None:
    # DICOM counts to the left and the back, so that this is the same place as the NIfTI file's.
    affine = np.diag([-1.0, -1.0, 4.0, 1.0])
    volume = ramp((5, 6, 7), affine)
    flair = write_nifti(tmp_path / "flair.nii", volume, affine)
    kept = (0, 1, 2, 4, 5, 6)
    paths = [
        write_dicom(
            tmp_path / f"{number}.dcm",
            dicom(np.rint(volume[:, :, number].T).astype(np.uint16), height=4.0 * number),
        )
        for number in kept
    ]
    told = recipe([source("dicom", *paths, window=Window(400, 700)), source("nifti", flair), None])
    for number in range(7):
        expected = apply(Window(400, 700), np.rint(volume[:, :, number].T))
        assert np.abs(read(told, flair, number)[..., 0].astype(int) - expected).max() <= 1


def test_what_is_wrong_with_a_channel_names_it(tmp_path: Path) -> None:
    flair = write_nifti(tmp_path / "flair.nii", voxels(8, 8, 6))
    t1c = tmp_path / "t1c.nii"
    t1c.write_bytes(flair.read_bytes()[:-9])
    with pytest.raises(SliceError, match="t1c: the file ends"):
        read(recipe([None, source("nifti", flair), source("nifti", t1c)]), flair, 0)
    nowhere = write_dicom(tmp_path / "a.dcm", dicom(voxels(6, 5, dtype=np.uint16), height=None))
    with pytest.raises(SliceError, match="t1: it does not say where"):
        read(recipe([source("dicom", nowhere), source("nifti", flair), None]), flair, 0)


@needs_real
def test_real_sequences_are_resampled_as_nibabel_does() -> None:
    pytest.importorskip("scipy")
    from nibabel.processing import resample_from_to

    t1, flair = REAL / "tcga_fg_6692_t1.nii.gz", REAL / "tcga_fg_6692_flair.nii.gz"
    image = read(recipe([source("nifti", t1), source("nifti", flair), None]), flair, 14)
    theirs = np.asarray(resample_from_to(nibabel.load(t1), nibabel.load(flair), order=1).dataobj)
    expected = apply(shared_window(np.asarray(nibabel.load(t1).dataobj)), theirs[:, ::-1, 14].T)
    # They leave out the half voxel around the outermost centres.
    assert (np.abs(image[..., 0].astype(int) - expected) > 1).mean() < 0.01


def test_slices_are_found_again_by_file_and_number(tmp_path: Path) -> None:
    nifti = write_nifti(tmp_path / "a.nii.gz", voxels(5, 6, 4))
    paths = series(tmp_path / "scan")
    pages = [voxels(6, 7, seed=n, dtype=np.uint16) for n in range(3)]
    (tmp_path / "pages.tif").write_bytes(tiff_pages(pages))
    (tmp_path / "plain.tif").write_bytes(tiff(6, 7))
    again, reader = Again(), VolumeReader()
    found = [each for each in Discovery([str(tmp_path)], None, None) if isinstance(each, SourceFile)]
    several, plain = (each for each in found if each.source is None)
    assert several.path.endswith(b"pages.tif")
    expected, image = np.zeros((256, 256, 3), np.uint8), np.ones((256, 256, 3), np.uint8)
    for each in [*(each for each in found if each.source), *pages_of(several, 3), plain]:
        assert reader.decode(each, expected) == again.decode(each.path, each.slice, image)
        assert np.array_equal(image, expected)
    paths[0].unlink()
    assert nifti.exists()
    with pytest.raises(SliceError):
        again.decode(os.fsencode(paths[0]), 0, image)
