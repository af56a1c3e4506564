"""Volumes from end to end: NIfTI files and DICOM series are scored, and their masks come back as volumes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from engine.outputs.components import Rule
from engine.scoring import Options, Outcome, score
from tests.dicomseries import DIRECTIONS, IDENTITY, PATIENT, series
from tests.runs import files_below, table
from tests.tinybundle import make_tiny_bundle, tiny_slice

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

SLICES = 6
SIDE = 256


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    make_tiny_bundle(folder / "bundle")
    planes = [tiny_slice(number, lesion=number % 3 != 1)[..., 1] for number in range(SLICES)]
    (folder / "data" / "scan").mkdir(parents=True)
    volume = np.stack(planes, axis=-1).transpose(1, 0, 2)[
        ::-1, ::-1
    ]  # columns to the right, rows to the front
    affine = np.diag([0.8, 0.8, 2.5, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume, affine), folder / "data" / "head.nii.gz")
    paths = series(folder / "data" / "scan", SLICES, DIRECTIONS["axial"], height=SIDE, width=SIDE)
    for path, plane in zip(paths, planes, strict=True):
        data = pydicom.dcmread(path)
        data.WindowCenter, data.WindowWidth = 128, 256
        data.PixelData = plane.astype(np.uint16).tobytes()
        data.save_as(path)
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(home)
    yield home
    for entry in home.iterdir():
        if entry.name not in ("data", "bundle"):
            shutil.rmtree(entry)


def run(out: str, **options: Any) -> Outcome:
    words = {"backend": "onnxruntime", "workers": 1, **options}
    return score(Options(("data",), Path(out), bundle=Path("bundle"), **words))


def drawn(out: str, volume: str) -> npt.NDArray[np.uint8]:
    """The PNG masks of a volume as [slice,h,w] of 0/1."""
    rows = table(Path(out))
    masks = np.zeros((SLICES, SIDE, SIDE), np.uint8)
    for number, path in enumerate(rows[rows["volume"] == volume]["mask_path"]):
        if path:
            image = cv2.imread(f"{out}/{path}", cv2.IMREAD_UNCHANGED)
            assert image is not None
            masks[number] = image // 255
    return masks


def test_masks_come_back_in_the_sources_own_form_and_place(here: Path) -> None:
    assert run("out").counts.quarantined == 0
    volumes = table(Path("out"), "volumes.csv").set_index("volume")
    (dicom,) = (name for name in volumes.index if name.startswith("data/scan/"))
    found = nibabel.load(f"out/{volumes['mask_path']['data/head.nii.gz']}")
    np.testing.assert_array_equal(found.affine, nibabel.load("data/head.nii.gz").affine)
    truth = drawn("out", "data/head.nii.gz")
    assert truth.any(axis=(1, 2)).sum() == 4
    np.testing.assert_array_equal(np.asarray(found.dataobj)[::-1, ::-1].transpose(2, 1, 0), truth)

    seg = pydicom.dcmread(f"out/{volumes['mask_path'][dicom]}")
    truth = drawn("out", dicom)
    files = sorted((here / "data" / "scan").iterdir())
    slices = {pydicom.dcmread(path).SOPInstanceUID: mask for path, mask in zip(files, truth, strict=True)}
    for frame, own in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        uid = own.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_array_equal(frame, slices.pop(uid))
    assert not any(mask.any() for mask in slices.values())
    for name, voxel in (("data/head.nii.gz", 0.8 * 0.8 * 2.5), (dicom, 0.5 * 0.75 * 3.0)):
        assert float(volumes["ml"][name]) == pytest.approx(
            int(volumes["voxels"][name]) * voxel / 1000, rel=1e-5
        )
        assert int(volumes["slices"][name]) == SLICES
    for path in (here / "out").rglob("*"):
        assert not path.is_file() or not any(
            word.encode() in path.read_bytes() for word in (PATIENT, IDENTITY)
        )


def test_a_run_that_is_continued_leaves_the_same_volumes(here: Path) -> None:
    rule = {"components": Rule.parse("2ml")}
    run("whole", **rule)
    run("parts", **rule, limit=4)
    run("parts", **rule)
    assert files_below(Path("parts")) == files_below(Path("whole"))
    for name in ("results.csv", "volumes.csv"):
        assert (here / "parts" / name).read_bytes() == (here / "whole" / name).read_bytes()
    volumes = table(Path("whole"), "volumes.csv").set_index("volume")
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(f"whole/{volumes['mask_path']['data/head.nii.gz']}").dataobj).sum(),
        drawn("whole", "data/head.nii.gz").sum(),
    )


def test_pseudonyms_hide_series_and_files_and_keep_geometry(here: Path) -> None:
    run("out", anonymise=Path("private"))
    volumes = table(Path("out"), "volumes.csv")
    assert not any(word in f"{volumes.to_csv()}" for word in ("head", "scan", "series", "data"))
    sources = [pydicom.dcmread(path) for path in sorted((here / "data" / "scan").iterdir())]
    (target,) = (here / "out" / "volumes").rglob("*_mask.dcm")
    seg, data = pydicom.dcmread(target), target.read_bytes()
    assert not any(source.SOPInstanceUID.encode() in data for source in sources)
    place = seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert any(list(place) == pytest.approx(list(source.ImagePositionPatient)) for source in sources)


def test_without_masks_there_are_no_volumes_of_them(here: Path) -> None:
    run("out", masks="none")
    assert not (here / "out" / "volumes").exists()
    assert set(table(Path("out"), "volumes.csv")["mask_path"]) == {""}
