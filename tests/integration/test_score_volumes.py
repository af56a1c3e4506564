"""Volumes scored as a user does it: every slice a row, and the same bytes however the run went."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.runs import command, environment, files_below, results, table, tumorscan
from tests.tinybundle import make_tiny_bundle, tiny_slice
from tests.volumes import REAL, dicom, needs_real, tiff_pages, write_dicom, write_nifti

pytest.importorskip("nibabel")
pytest.importorskip("pydicom")

DEADLINE_S = 120.0


def head(slices: int, seed: int, lesions: bool = True) -> npt.NDArray[np.uint16]:
    """A volume [n,256,256] whose every third slice shows nothing."""
    planes = [tiny_slice(seed + n, lesion=lesions and n % 3 != 1)[..., 1] for n in range(slices)]
    return np.stack(planes).astype(np.uint16) * 3 + 1


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and, in data/, a NIfTI file, a DICOM series, a TIFF of pages: 52 slices."""
    folder = tmp_path_factory.mktemp("volumes")
    make_tiny_bundle(folder / "bundle")
    volume = head(18, 100).transpose(2, 1, 0)[::-1, ::-1]
    write_nifti(folder / "data" / "p1" / "flair.nii.gz", np.ascontiguousarray(volume))
    for number, plane in enumerate(head(20, 200)):
        made = dicom(plane, height=3.0 * number, instance=number + 1)
        write_dicom(folder / "data" / "p2" / f"{(number * 7) % 20:02d}.dcm", made)
    (folder / "data" / "p3").mkdir()
    (folder / "data" / "p3" / "pages.tif").write_bytes(tiff_pages(list(head(14, 300))))
    return folder


def words(folder: Path, *more: str, out: str) -> tuple[str, ...]:
    fixed = ("score", "data", "--bundle", str(folder / "bundle"), "--backend", "onnxruntime")
    return (*fixed, "--out", out, *more)


@pytest.fixture(scope="module")
def whole(workplace: Path) -> Path:
    """The output of a run that nobody disturbed."""
    ran = tumorscan(*words(workplace, out="whole"), cwd=workplace)
    assert ran.status == 0, ran.err
    return workplace / "whole"


def test_every_slice_has_its_row_and_its_mask(whole: Path) -> None:
    rows = table(whole)
    assert (rows["status"] == "ok").all()
    assert list(rows["image_path"].map(os.path.basename).value_counts().sort_index().head(3)) == [1, 1, 1]
    nifti = rows[rows["image_path"] == "data/p1/flair.nii.gz"]
    assert list(nifti["slice"]) == [str(n) for n in range(18)]
    assert set(nifti["volume"]) == {"data/p1/flair.nii.gz"}
    pages = rows[rows["image_path"] == "data/p3/pages.tif"]
    assert list(pages["slice"]) == [str(n) for n in range(14)]
    series = rows[rows["image_path"].str.startswith("data/p2/")]
    assert len(series) == 20
    assert set(series["slice"]) == {"0"}
    assert set(series["volume"].str.rpartition("-")[0]) == {"data/p2/FLAIR_axial"}
    assert [n % 3 != 1 for n in range(18)] == list(nifti["has_mask"] == "1")
    assert [n % 3 != 1 for n in range(20)] == list(series["has_mask"] == "1")
    assert [n % 3 != 1 for n in range(14)] == list(pages["has_mask"] == "1")
    assert pages["mask_path"].iloc[3] == "masks/p3/pages.tif/003_mask.png"
    assert nifti["mask_path"].iloc[3] == "masks/p1/flair.nii.gz/003_mask.png"
    for path in rows["mask_path"]:
        assert path == "" or (whole / path).is_file()


def test_no_patient_is_named_in_what_is_written(whole: Path) -> None:
    for path in whole.rglob("*"):
        if path.is_file() and path.suffix != ".sqlite":
            data = path.read_bytes()
            assert b"Doe" not in data, path
            assert b"P4711" not in data, path
    assert b"Doe" not in (whole / "run.sqlite").read_bytes()


def test_batch_and_workers_change_nothing(workplace: Path, whole: Path) -> None:
    ran = tumorscan(*words(workplace, "--batch", "5", "--workers", "3", out="other"), cwd=workplace)
    assert ran.status == 0, ran.err
    assert results(workplace / "other") == results(whole)
    assert files_below(workplace / "other") == files_below(whole)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_kill_within_volumes_leaves_nothing_that_a_continuation_would_not_mend(
    workplace: Path, whole: Path, seed: int
) -> None:
    out = workplace / f"killed{seed}"
    shutil.copytree(whole, out)
    # Any rows may have been committed before a kill: blocks come to their end in any order.
    with closing(sqlite3.connect(out / "run.sqlite")) as ledger:
        keys = ledger.execute("SELECT ord, slice FROM slices").fetchall()
        lost = random.Random(seed).sample(keys, 30)
        ledger.executemany("DELETE FROM slices WHERE ord = ? AND slice = ?", lost)
        ledger.commit()
    (out / "results.csv").unlink()
    ran = tumorscan(*words(workplace, "--batch", "7", out=out.name), cwd=workplace)
    assert ran.status == 0, ran.err
    assert "30 slices" in ran.out
    assert results(out) == results(whole)
    assert files_below(out) == files_below(whole)


def test_killed_for_real_and_continued_it_leaves_the_same_bytes(workplace: Path, whole: Path) -> None:
    process = subprocess.Popen(
        command(*words(workplace, "--batch", "2", "--workers", "1", out="shot")),
        cwd=workplace,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    masks, deadline = workplace / "shot" / "masks", time.monotonic() + DEADLINE_S
    while not any(masks.rglob("*.png")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ran = tumorscan(*words(workplace, out="shot"), cwd=workplace)
    assert ran.status == 0, ran.err
    assert results(workplace / "shot") == results(whole)
    assert files_below(workplace / "shot") == files_below(whole)


def test_a_file_that_comes_to_a_scored_series_without_a_window_of_its_own_is_refused(
    workplace: Path, whole: Path
) -> None:
    late = workplace / "data" / "p2" / "late.dcm"
    write_dicom(late, dicom(head(1, 900)[0], height=100.0, instance=99))
    try:
        ran = tumorscan(*words(workplace, out="whole"), cwd=workplace)
    finally:
        late.unlink()
    assert ran.status == 2
    assert "data/p2/FLAIR_axial" in ran.err
    ran = tumorscan(*words(workplace, out="whole"), cwd=workplace)
    assert (ran.status, "nothing new" in ran.out) == (0, True)


def test_channels_belong_to_the_run(tmp_path: Path) -> None:
    make_tiny_bundle(tmp_path / "bundle")
    flair = np.ascontiguousarray(head(6, 100).transpose(2, 1, 0)[::-1, ::-1])
    write_nifti(tmp_path / "data" / "p1" / "flair.nii.gz", flair)
    write_nifti(tmp_path / "data" / "p1" / "t1.nii.gz", flair[:, ::-1].copy())
    said = ("--channels", "t1=t1*,flair=flair*")
    ran = tumorscan(*words(tmp_path, *said, out="out"), cwd=tmp_path)
    assert ran.status == 0, ran.err
    rows = table(tmp_path / "out")
    assert set(rows["image_path"]) == {"data/p1/flair.nii.gz"}
    assert list(rows["has_mask"] == "1") == [n % 3 != 1 for n in range(6)]
    ran = tumorscan(*words(tmp_path, out="out"), cwd=tmp_path)
    assert ran.status == 2
    assert "channels" in ran.err
    ran = tumorscan(*words(tmp_path, "--channels", "t2=x", out="out"), cwd=tmp_path)
    assert ran.status == 2
    assert "--channels" in ran.err


@needs_real
def test_every_real_file_is_scored_or_refused_for_a_stated_reason(tmp_path: Path) -> None:
    make_tiny_bundle(tmp_path / "bundle")
    ran = tumorscan(
        "score",
        REAL,
        "--bundle",
        tmp_path / "bundle",
        "--backend",
        "onnxruntime",
        "--out",
        "out",
        cwd=tmp_path,
    )
    assert ran.status == 4, ran.err
    rows, errors = table(tmp_path / "out"), table(tmp_path / "out", "errors.csv")
    assert len(rows) == 3 + 1 + 6 + 1 + 5 * 26
    assert set(errors["code"]) == {"mosaic", "labels"}
    assert set(errors["image_path"].map(lambda path: Path(path).name)) == {
        "jp2k1.dcm",
        "tcga_fg_6692_brainmask.nii.gz",
    }
