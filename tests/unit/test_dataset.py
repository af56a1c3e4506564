from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from engine.errors import UsageError
from trainer.dataset import Split, load_frame, read_mask, slice_keys
from trainer.splits import split_by_patient


def write_slice(folder: Path, name: str, tumour: int = 0, suffix: str = ".tif") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((8, 8), np.uint8)
    mask.flat[:tumour] = 255
    assert cv2.imwrite(str(folder / f"{name}{suffix}"), np.full((8, 8, 3), 90, np.uint8))
    assert cv2.imwrite(str(folder / f"{name}_mask{suffix}"), mask)


def made_up_frame(patients: int = 40, slices: int = 10) -> pd.DataFrame:
    rows = []
    for p in range(patients):
        patient = f"TCGA_{('AA', 'BB', 'CC')[p % 3]}_{1000 + p}_19990101"
        for s in range(slices):
            path = f"set/{patient}/{patient}_{s}.tif"
            rows.append((path, path.replace(".tif", "_mask.tif"), int(s < 1 + p % 7), patient))
    return pd.DataFrame(rows, columns=["image_path", "mask_path", "mask", "patient_id"])


def test_the_frame_has_a_row_a_slice_in_natural_order(tmp_path: Path) -> None:
    for patient in ("TCGA_CS_10_1", "TCGA_CS_9_1"):
        for number in (10, 2, 1):
            write_slice(tmp_path / "kaggle_3m" / patient, f"{patient}_{number}", tumour=number == 2)
    frame = load_frame(tmp_path)
    assert list(frame.columns) == ["image_path", "mask_path", "mask", "patient_id"]
    assert slice_keys(frame) == [
        f"{patient}/{patient}_{number}.tif"
        for patient in ("TCGA_CS_9_1", "TCGA_CS_10_1")
        for number in (1, 2, 10)
    ]
    assert list(frame["mask"]) == [0, 1, 0, 0, 1, 0]
    assert frame["mask"].dtype == np.int64


@pytest.mark.parametrize("typed", [".", "./", "./kaggle_3m", "kaggle_3m", "kaggle_3m/"])
def test_image_paths_are_the_root_as_typed_and_the_path_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    write_slice(tmp_path / "kaggle_3m" / "p_1", "a")
    monkeypatch.chdir(tmp_path)
    path = load_frame(typed)["image_path"].iloc[0]
    assert path == {".": "./kaggle_3m"}.get(typed.rstrip("/"), typed.rstrip("/")) + "/p_1/a.tif"
    assert Path(path).is_file()


def test_the_second_copy_in_kaggles_archive_is_not_read(tmp_path: Path) -> None:
    write_slice(tmp_path / "kaggle_3m" / "p_1", "a")
    write_slice(tmp_path / "lgg-mri-segmentation" / "kaggle_3m" / "p_1", "a")
    assert len(load_frame(tmp_path)) == 1


def test_any_tree_of_patient_folders_will_do_png_too(tmp_path: Path) -> None:
    write_slice(tmp_path / "site" / "anna", "s1", tumour=3, suffix=".png")
    write_slice(tmp_path / "ben", "s1")
    (tmp_path / "README.md").write_text("text")
    (tmp_path / "ben" / "._s1.tif").write_bytes(b"a resource fork")
    frame = load_frame(tmp_path)
    assert list(zip(frame["patient_id"], frame["mask"], strict=True)) == [("anna", 1), ("ben", 0)]


def test_a_patient_folder_can_be_given_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slice(tmp_path / "anna", "s1")
    monkeypatch.chdir(tmp_path / "anna")
    assert list(load_frame(".")["patient_id"]) == ["anna"]


def test_linked_patient_folders_are_read_and_a_link_loop_ends(tmp_path: Path) -> None:
    write_slice(tmp_path / "elsewhere" / "anna", "s1")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "anna").symlink_to(tmp_path / "elsewhere" / "anna")
    (tmp_path / "elsewhere" / "anna" / "loop").symlink_to(tmp_path / "set")
    assert list(load_frame(tmp_path / "set")["patient_id"]) == ["anna"]


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        load_frame(tmp_path / "nowhere")


def test_a_root_without_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("text")
    with pytest.raises(UsageError, match="no pairs"):
        load_frame(tmp_path)


def test_images_without_masks_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_slice(tmp_path / "anna", f"s{number}")
    for number in (2, 3):
        (tmp_path / "anna" / f"s{number}_mask.tif").unlink()
    with pytest.raises(UsageError, match=r"2 of 3 images .*anna/s2\.tif"):
        load_frame(tmp_path)


def test_a_mask_that_is_no_image_is_named(tmp_path: Path) -> None:
    write_slice(tmp_path / "anna", "s1")
    for content in (b"", b"not an image"):
        (tmp_path / "anna" / "s1_mask.tif").write_bytes(content)
        with pytest.raises(UsageError, match=r"s1_mask\.tif is not a readable image"):
            load_frame(tmp_path)


def test_the_same_slice_twice_is_refused(tmp_path: Path) -> None:
    write_slice(tmp_path / "a" / "anna", "s1")
    write_slice(tmp_path / "b" / "anna", "s1")
    with pytest.raises(UsageError, match="same slice"):
        load_frame(tmp_path)


def test_an_opaque_alpha_channel_is_no_mask(tmp_path: Path) -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[..., 3] = 255
    mask[1, 2, 0] = 1
    assert cv2.imwrite(str(tmp_path / "m.png"), mask)
    assert np.argwhere(read_mask(str(tmp_path / "m.png"))).tolist() == [[1, 2]]


def test_a_split_comes_back_from_its_file_and_the_hash_is_the_files(tmp_path: Path) -> None:
    split = split_by_patient(made_up_frame(), 0)
    split.save(tmp_path / "new" / "split.json")
    split.save(tmp_path / "new" / "again.json")
    content = (tmp_path / "new" / "split.json").read_bytes()
    assert Split.load(tmp_path / "new" / "split.json") == split
    assert content == (tmp_path / "new" / "again.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == split.sha256
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"format": 2}',
        '{"format": 1, "kind": "patient", "seed": 0, "train": ["a"], "validation": ["b"]}',
        '{"format": 1, "kind": "page", "seed": 0, "train": ["a"], "validation": ["b"], "test": []}',
        '{"format": 1, "kind": "patient", "seed": 0, "train": ["a"], "validation": ["a"], "test": []}',
    ],
)
def test_a_file_that_is_no_split_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(UsageError, match=r"split\.json is not a split"):
        Split.load(tmp_path / "split.json")


def test_a_missing_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the split"):
        Split.load(tmp_path / "split.json")


def test_patients_that_a_split_does_not_know_are_refused_unless_allowed() -> None:
    split = split_by_patient(made_up_frame(patients=10), 0)
    larger = made_up_frame(patients=12)
    with pytest.raises(UsageError, match=r"2 of 12 patient names .* the first is TCGA_BB_1010"):
        split.select(larger, "train")
    rows = split.select(larger, "train", allow_unknown=True)
    assert set(rows["patient_id"]) == set(split.train)


def test_a_part_that_is_not_in_the_data_is_refused() -> None:
    frame = made_up_frame(patients=10)
    split = split_by_patient(frame, 0)
    with pytest.raises(UsageError, match="part test is in the data"):
        split.select(split.select(frame, "train"), "test")


def test_a_part_that_is_only_partly_there_is_said_so(caplog: pytest.LogCaptureFixture) -> None:
    frame = made_up_frame(patients=20)
    split = split_by_patient(frame, 0)
    few = frame[frame["patient_id"] != split.test[0]]
    assert set(split.select(few, "test")["patient_id"]) == set(split.test[1:])
    assert "1 of 3 patient names of part test are not in the data" in caplog.text
