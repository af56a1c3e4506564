"""Volumes in the input: what their slices are called, how they sort, whose sequences belong together."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from engine.errors import UsageError
from engine.sources import series as series_module
from engine.sources.channels import Patterns
from engine.sources.discovery import Discovery, SourceFile, Unlisted
from engine.sources.volumes import understood
from tests.badfiles import png
from tests.volumes import REAL, SAGITTAL, dicom, needs_real, voxels, write_dicom, write_nifti, write_series

pytest.importorskip("nibabel")
pytest.importorskip("pydicom")

NOWHERE = Path("/nowhere/out")
PICTURE = voxels(6, 5, dtype=np.uint16)


def found(folder: Path, channels: str | None = None) -> list[SourceFile | Unlisted]:
    patterns = None if channels is None else Patterns.parse(channels)
    return list(Discovery([str(folder)], None, NOWHERE, patterns))


def slices(folder: Path, channels: str | None = None) -> list[SourceFile]:
    return [each for each in found(folder, channels) if isinstance(each, SourceFile)]


def name(folder: Path, entry: SourceFile | Unlisted) -> str:
    return entry.image_path.removeprefix(f"{folder}/")


def failures(folder: Path, channels: str | None = None) -> dict[str, str]:
    entries = found(folder, channels)
    return {name(folder, each): each.failure.code for each in entries if isinstance(each, Unlisted)}


def assert_sorted(entries: list[SourceFile | Unlisted]) -> None:
    keys = [(each.order, each.slice if isinstance(each, SourceFile) else 0) for each in entries]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_a_nifti_file_is_a_volume_and_its_slices_are_numbered(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "p1" / "a.nii.gz", voxels(4, 5, 3))
    entries = slices(tmp_path)
    assert [entry.slice for entry in entries] == [0, 1, 2]
    assert [entry.mask_stem for entry in entries] == [b"p1/a.nii.gz/%03d" % n for n in range(3)]
    assert {entry.volume for entry in entries} == {entry.image_path for entry in entries} == {str(path)}
    assert len({id(entry.source) for entry in entries}) == 1
    assert (entries[0].size, entries[0].mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)


def test_a_series_is_sorted_by_place_whatever_its_files_are_called(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", 7)
    entries = slices(tmp_path)
    assert [entry.path for entry in entries] == list(map(os.fsencode, paths))
    (volume,) = {entry.volume for entry in entries}
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/scan/FLAIR_axial-[0-9a-f]{{8}}", volume)
    assert {entry.slice for entry in entries} == {0}
    assert entries[0].mask_stem == b"scan/" + paths[0].name.encode()
    assert_sorted([*entries])


def test_files_that_come_later_sort_in_between_and_move_nothing(tmp_path: Path) -> None:
    paths = write_series(tmp_path, 7)
    late = paths[3].rename(tmp_path.parent / f"{tmp_path.name}.late")
    before = {entry.path: entry.order for entry in slices(tmp_path)}
    late.rename(tmp_path / "0_first_by_name.dcm")
    after = slices(tmp_path)
    assert [entry.path for entry in after][3].endswith(b"0_first_by_name.dcm")
    assert {entry.path: entry.order for entry in after if entry.path in before} == before


def test_series_of_one_folder_are_volumes_of_their_own_and_come_before_its_files(tmp_path: Path) -> None:
    write_series(tmp_path / "1", 2)
    write_series(tmp_path / "2", 3, series="1.2.3.2", SeriesNumber=1)
    for folder in ("1", "2"):
        for path in (tmp_path / folder).iterdir():
            path.rename(tmp_path / f"{folder}_{path.name}")
        (tmp_path / folder).rmdir()
    (tmp_path / "0.png").write_bytes(png(8, 8))
    entries = found(tmp_path)
    assert_sorted(entries)
    assert [name(tmp_path, entry)[0] for entry in entries] == ["2", "2", "2", "1", "1", "0"]
    assert len({entry.volume for entry in entries if isinstance(entry, SourceFile)}) == 3


def test_files_without_an_ending_are_looked_into_and_others_are_not(tmp_path: Path) -> None:
    for called in ("IM0001", "1.2.840.1", "a.dat"):
        write_dicom(tmp_path / called, dicom(PICTURE))
    (tmp_path / "LICENSE").write_text("words")
    (tmp_path / "DICOMDIR").write_bytes(b"")
    write_dicom(tmp_path / "DICOMDIR", dicom(PICTURE, SOPClassUID="1.2.840.10008.1.3.10"))
    discovery = Discovery([str(tmp_path)], None, NOWHERE)
    assert sorted(name(tmp_path, entry) for entry in discovery) == ["1.2.840.1", "IM0001"]
    assert discovery.skipped_other == 3


def test_masks_of_volumes_are_passed_over(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a_mask.nii.gz", voxels(4, 5, 3))
    write_nifti(tmp_path / "b_MASK.nii", voxels(4, 5, 3))
    discovery = Discovery([str(tmp_path)], None, NOWHERE)
    assert list(discovery) == []
    assert discovery.skipped_masks == 2


def test_frames_of_a_file_are_slices_of_its_series(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", dicom(voxels(3, 6, 5, dtype=np.uint16)))
    entries = slices(tmp_path)
    assert [(entry.slice, entry.mask_stem) for entry in entries] == [(n, b"a.dcm/%03d" % n) for n in range(3)]
    assert entries[0].volume.startswith(f"{tmp_path}/FLAIR_axial-")


def test_what_cannot_be_scored_has_a_row_that_says_why(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", 2)
    write_dicom(tmp_path / "scan" / "sag.dcm", dicom(PICTURE, directions=SAGITTAL))
    write_dicom(
        tmp_path / "scan" / "pdf.dcm", dicom(PICTURE, SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1", Rows=None)
    )
    (tmp_path / "scan" / "text.dcm").write_text("no DICOM")
    (tmp_path / "scan" / "short.nii.gz").write_bytes(b"\x1f\x8b\x08")
    write_nifti(tmp_path / "scan" / "times.nii", voxels(4, 5, 3, 2))
    assert failures(tmp_path) == {
        "scan/sag.dcm": "orientation",
        "scan/pdf.dcm": "dicom_object",
        "scan/text.dcm": "not_an_image",
        "scan/short.nii.gz": "truncated",
        "scan/times.nii": "four_d",
    }
    assert len(slices(tmp_path)) == 2
    assert_sorted(found(tmp_path))


def test_pipes_folders_and_links_with_such_names_are_what_they_are(tmp_path: Path) -> None:
    write_series(tmp_path / "real.dcm", 2)
    os.mkfifo(tmp_path / "pipe.dcm")
    os.mkfifo(tmp_path / "pipe.nii")
    linked = tmp_path / "links"
    linked.mkdir()
    for path in (tmp_path / "real.dcm").iterdir():
        (linked / path.name).symlink_to(path)
    (linked / "gone.dcm").symlink_to("nowhere")
    assert failures(tmp_path) == {
        "pipe.dcm": "not_a_file",
        "pipe.nii": "not_a_file",
        "links/gone.dcm": "not_found",
    }
    assert [name(tmp_path, each).split("/")[0] for each in slices(tmp_path)] == [
        "links", "links", "real.dcm", "real.dcm"
    ]  # fmt: skip
    assert len({entry.volume for entry in slices(tmp_path)}) == 2


def test_a_file_that_is_named_stands_alone(tmp_path: Path) -> None:
    paths = write_series(tmp_path, 3)
    odd = write_dicom(tmp_path / "odd.dat", dicom(PICTURE))
    entries = list(Discovery([str(paths[1]), str(odd)], None, NOWHERE))
    assert [len(understood(entry.source.recipe)[0].paths) for entry in entries] == [1, 1]


def test_a_quick_count_opens_no_dicom_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, 3)
    discovery = Discovery([str(tmp_path)], None, NOWHERE)
    with monkeypatch.context() as patched:
        patched.setattr(series_module, "look", None)
        assert len(list(discovery.roughly())) == 3
    assert len(list(discovery)) == 3


@pytest.mark.parametrize(("module", "file"), [("pydicom", "a.dcm"), ("nibabel", "a.nii")])
def test_without_the_extra_one_line_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, file: str
) -> None:
    write_dicom(tmp_path / "a.dcm", dicom(PICTURE))
    write_nifti(tmp_path / "a.nii", voxels(4, 5, 3))
    whole = series_module.find_spec
    monkeypatch.setattr(series_module, "find_spec", lambda name: None if name == module else whole(name))
    (entry,) = [each for each in found(tmp_path) if isinstance(each, Unlisted)]
    assert name(tmp_path, entry) == file
    assert entry.failure.code == "needs_medical"
    assert "tumorscan[medical]" in entry.failure.message


def test_a_window_hangs_on_all_files_of_a_series_or_on_none(tmp_path: Path) -> None:
    write_series(tmp_path / "own", 3, WindowCenter=100, WindowWidth=200)
    write_series(tmp_path / "all", 3)
    prints = {}
    for folder in ("own", "all"):
        before = {entry.source.fingerprint for entry in slices(tmp_path / folder)}
        (tmp_path / folder / "000.dcm").unlink()
        prints[folder] = (before, {entry.source.fingerprint for entry in slices(tmp_path / folder)})
        assert all(len(each) == 1 for each in prints[folder])
    assert prints["own"][0] == prints["own"][1]
    assert prints["all"][0] != prints["all"][1]


CHANNELS = "t1=*t1*,flair=*flair*,t1c=*t1c*"


def combined(entry: SourceFile) -> list[str | None]:
    assert entry.source is not None
    sources = understood(entry.source.recipe)
    return [None if each is None else Path(os.fsdecode(each.paths[0])).name for each in sources]


def test_sequences_of_a_folder_become_the_channels_of_its_flair(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        for kind in ("T1", "T1c", "FLAIR", "T2"):
            if (patient, kind) != ("p2", "T1c"):
                write_nifti(tmp_path / patient / f"{patient}_{kind}.nii.gz", voxels(4, 5, 3))
    (tmp_path / "p2" / "picture.png").write_bytes(png(8, 8))
    patterns = Patterns.parse(CHANNELS)
    discovery = Discovery([str(tmp_path)], None, NOWHERE, patterns)
    entries = list(discovery)
    assert_sorted(entries)
    assert [name(tmp_path, entry) for entry in entries] == [
        *["p1/p1_FLAIR.nii.gz"] * 3, *["p2/p2_FLAIR.nii.gz"] * 3, "p2/picture.png"
    ]  # fmt: skip
    volumes = [entry for entry in entries if isinstance(entry, SourceFile) and entry.source]
    assert combined(volumes[0]) == ["p1_T1.nii.gz", "p1_FLAIR.nii.gz", "p1_T1c.nii.gz"]
    assert combined(volumes[-1]) == ["p2_T1.nii.gz", "p2_FLAIR.nii.gz", None]
    assert discovery.skipped_other == 2


def test_series_of_a_study_belong_together_in_one_folder_or_each_in_its_own(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        for number, kind in enumerate(("ax T1", "ax FLAIR", "ax T1c", "ax T2")):
            for path in write_series(
                tmp_path / "apart" / patient / f"s{number}",
                2,
                series=f"1.2.{patient[1]}.{number}",
                study=f"1.{patient[1]}",
                SeriesNumber=number,
                SeriesDescription=kind,
            ):
                together = tmp_path / "together" / patient
                together.mkdir(parents=True, exist_ok=True)
                os.link(path, together / f"{number}_{path.name}")
    for layout in ("apart", "together"):
        discovery = Discovery([str(tmp_path / layout)], None, NOWHERE, Patterns.parse(CHANNELS))
        entries = [entry for entry in discovery if isinstance(entry, SourceFile)]
        assert_sorted([*entries])
        assert len(entries) == 4
        assert all("FLAIR" in entry.volume for entry in entries)
        for entry in entries:
            patient = f"/{layout}/{'p1' if '/p1/' in entry.image_path else 'p2'}/"
            for source in understood(entry.source.recipe if entry.source else ""):
                assert source is not None
                assert len(source.paths) == 2
                assert all(patient in os.fsdecode(path) for path in source.paths)
        assert discovery.skipped_other == 4


def test_patients_who_lie_side_by_side_are_not_mixed(tmp_path: Path) -> None:
    for number, kind in enumerate(("T1", "FLAIR")):
        write_series(
            tmp_path / f"p{number}", 2, series=f"1.{number}", study=f"9.{number}", SeriesDescription=kind
        )
    ((path, code),) = failures(tmp_path, CHANNELS).items()
    assert (path.split("/")[0], code) == ("p0", "sequences")
    assert {combined(entry)[0] for entry in slices(tmp_path, CHANNELS)} == {None}


def test_a_patient_without_flair_and_one_with_two_are_told(tmp_path: Path) -> None:
    write_nifti(tmp_path / "p1" / "t1.nii", voxels(4, 5, 3))
    for number in "12":
        write_nifti(tmp_path / "p2" / f"flair{number}.nii", voxels(4, 5, 3))
    assert failures(tmp_path, CHANNELS) == {"p1/t1.nii": "sequences", "p2/flair1.nii": "sequences"}


def test_channels_hang_on_every_file_that_they_are_made_of(tmp_path: Path) -> None:
    for kind in ("t1", "flair"):
        write_nifti(tmp_path / f"{kind}.nii", voxels(4, 5, 3))
    before = {entry.source.fingerprint for entry in slices(tmp_path, CHANNELS)}
    os.utime(tmp_path / "t1.nii", (1, 1))
    assert {entry.source.fingerprint for entry in slices(tmp_path, CHANNELS)} != before


@pytest.mark.parametrize(
    "text", ["", "flair", "flair=", "t1=*", "t2=*,flair=*", "flair=a,flair=b", "flair=a,,"]
)
def test_channels_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--channels"):
        Patterns.parse(text)


def test_channels_need_folders(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "flair.nii", voxels(4, 5, 3))
    with pytest.raises(UsageError, match="folders"):
        Discovery([str(path)], None, NOWHERE, Patterns.parse(CHANNELS))
    with pytest.raises(UsageError, match="folders"):
        Discovery([], iter(()), NOWHERE, Patterns.parse(CHANNELS))


@needs_real
def test_every_real_file_is_a_slice_or_refused_for_a_reason() -> None:
    entries = found(REAL)
    assert_sorted(entries)
    assert {name(REAL, each) for each in entries} == {
        path.name for path in REAL.iterdir() if not path.name.startswith(".")
    }
    assert failures(REAL) == {"jp2k1.dcm": "mosaic"}


@needs_real
def test_real_sequences_are_combined_and_a_mask_beside_them_is_left_out() -> None:
    channels = "t1=*_t1.nii.gz,flair=*flair*,t1c=*t1c*"
    entries = slices(REAL, channels)
    assert len(entries) == 26
    kinds = [each and each.removeprefix("tcga_fg_6692_") for each in combined(entries[0])]
    assert kinds == ["t1.nii.gz", "flair.nii.gz", "t1c.nii.gz"]
