from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from engine.errors import UsageError
from trainer.phantoms import PhantomSet, write_phantoms

COUNT = 260


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> PhantomSet:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), COUNT, seed=7)


@pytest.fixture(scope="module")
def masks(phantoms: PhantomSet) -> dict[Path, npt.NDArray[np.uint8]]:
    """Each image's path with its mask."""
    return {path: _mask_of(path) for path in _images(phantoms.root)}


def _images(root: Path) -> list[Path]:
    paths = (path for path in root.glob("*/*.tif") if not path.stem.endswith("_mask"))
    return sorted(paths, key=lambda path: (path.parent.name, int(path.stem.rpartition("_")[2])))


def _mask_of(image: Path) -> npt.NDArray[np.uint8]:
    mask = cv2.imread(str(image.with_name(f"{image.stem}_mask.tif")), cv2.IMREAD_UNCHANGED)
    assert mask is not None, f"{image} has no mask"
    return np.asarray(mask, np.uint8)


def _read(image: Path) -> npt.NDArray[np.uint8]:
    """[256,256,3] RGB."""
    pixels = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, f"{image} cannot be read"
    return np.asarray(pixels[:, :, ::-1], np.uint8)


def _patients(root: Path) -> list[Path]:
    """Patient folders by their number."""
    return sorted(root.iterdir(), key=lambda folder: folder.name.rpartition("_")[2])


def _bytes_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.tif")}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_phantoms(tmp_path / "a", 26, seed=3)
    again = write_phantoms(tmp_path / "b", 26, seed=3)
    assert _bytes_below(first.root) == _bytes_below(again.root)
    assert (first.slices, first.lesion_slices, first.patients) == (26, again.lesion_slices, again.patients)


def test_another_seed_gives_other_slices(tmp_path: Path) -> None:
    first = write_phantoms(tmp_path / "a", 5, seed=3)
    other = write_phantoms(tmp_path / "b", 5, seed=4)
    seen = set(_bytes_below(first.root).values())
    images = [path.read_bytes() for path in _images(other.root)]
    assert len(images) == 5
    assert not seen.intersection(images)


def test_a_larger_count_begins_with_the_slices_of_a_smaller_one(tmp_path: Path, phantoms: PhantomSet) -> None:
    few = _bytes_below(write_phantoms(tmp_path, 30, seed=7).root)
    many = _bytes_below(phantoms.root)
    assert len(few) == 60
    assert all(many[name] == content for name, content in few.items())


@pytest.mark.parametrize("count", [1, 19, 45])
def test_exactly_as_many_slices_as_asked_are_written(tmp_path: Path, count: int) -> None:
    seen: list[int] = []
    written = write_phantoms(tmp_path, count, seed=0, progress=seen.append)
    assert len(_images(written.root)) == written.slices == count
    assert len(list(written.root.rglob("*_mask.tif"))) == count
    assert seen == list(range(1, count + 1))


def test_the_tree_is_that_of_kaggle_3m(phantoms: PhantomSet) -> None:
    assert phantoms.root.name == "kaggle_3m"
    folders = _patients(phantoms.root)
    assert len(folders) == phantoms.patients
    for folder in folders:
        assert re.fullmatch(r"PHANTOM_[A-Z]{2}_\d{4}", folder.name)
        numbers = range(1, len(list(folder.iterdir())) // 2 + 1)
        expected = {f"{folder.name}_{n}{tail}.tif" for n in numbers for tail in ("", "_mask")}
        assert {path.name for path in folder.iterdir()} == expected


def test_images_are_colour_and_masks_are_0_or_255(masks: dict[Path, npt.NDArray[np.uint8]]) -> None:
    assert len(masks) == COUNT
    for path, mask in masks.items():
        image = _read(path)
        assert image.shape == (256, 256, 3)
        assert mask.shape == (256, 256)
        assert set(np.unique(mask)) <= {0, 255}


def test_files_are_uncompressed_tiff(phantoms: PhantomSet) -> None:
    assert all(path.stat().st_size > 256 * 256 * 3 for path in _images(phantoms.root))


def test_lesions_have_the_sizes_of_the_real_set(
    phantoms: PhantomSet, masks: dict[Path, npt.NDArray[np.uint8]]
) -> None:
    areas = np.array([100 * np.mean(mask > 0) for mask in masks.values() if mask.any()])
    assert len(areas) == phantoms.lesion_slices
    assert 0.25 < len(areas) / COUNT < 0.5
    assert 1.3 < np.median(areas) < 3.5
    assert 0.1 < np.percentile(areas, 10) < 1.2
    assert areas.max() < 10.5


def test_lesions_lie_in_consecutive_slices(masks: dict[Path, npt.NDArray[np.uint8]]) -> None:
    for patient in {path.parent for path in masks}:
        lesion = np.array([mask.any() for path, mask in masks.items() if path.parent == patient])
        assert np.count_nonzero(np.diff(lesion.astype(int)) == 1) + lesion[0] <= 1


def test_some_patients_have_no_lesion_but_the_first_has(phantoms: PhantomSet) -> None:
    with_lesion = [
        any(_mask_of(path).any() for path in _images(phantoms.root) if path.parent == patient)
        for patient in _patients(phantoms.root)
    ]
    assert with_lesion[0]
    assert not all(with_lesion)


def test_masks_lie_inside_the_head_behind_the_skull(masks: dict[Path, npt.NDArray[np.uint8]]) -> None:
    for path, mask in masks.items():
        if not mask.any():
            continue
        scalp = cv2.GaussianBlur(_read(path)[:, :, 1], (0, 0), 1.5) > 20
        outlines, _ = cv2.findContours(scalp.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        head = cv2.drawContours(np.zeros_like(mask), [max(outlines, key=cv2.contourArea)], -1, 1, cv2.FILLED)
        assert not np.any(mask[cv2.erode(head, np.ones((9, 9), np.uint8)) == 0]), path.name


def test_lesions_are_brighter_than_the_rest_of_the_head_in_flair(
    masks: dict[Path, npt.NDArray[np.uint8]],
) -> None:
    contrasts = []
    for path, mask in masks.items():
        if mask.any():
            flair = _read(path)[:, :, 1]
            around = cv2.dilate(mask, np.ones((31, 31), np.uint8)) > 0
            contrasts.append(flair[mask > 0].mean() / flair[around & (mask == 0) & (flair > 25)].mean())
    assert np.mean(np.array(contrasts) > 1.1) > 0.9


def test_blank_slices_have_no_mask_and_some_slices_are_blank(
    masks: dict[Path, npt.NDArray[np.uint8]],
) -> None:
    blank = [path for path in masks if _read(path).std() < 2]
    assert blank
    assert not any(masks[path].any() for path in blank)


def test_flair_stands_in_for_the_missing_sequences_of_some_patients_but_not_the_first(
    phantoms: PhantomSet,
) -> None:
    alike = []
    for patient in _patients(phantoms.root):
        image = _read(patient / f"{patient.name}_1.tif")
        assert image.std() > 1
        alike.append(bool(np.all(image == image[:, :, 1:2])))
    assert not alike[0]
    assert 0 < sum(alike) < len(alike) / 2


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-3, 0), (5, -1)])
def test_a_count_below_one_or_a_negative_seed_is_refused(tmp_path: Path, count: int, seed: int) -> None:
    with pytest.raises(UsageError, match="at least"):
        write_phantoms(tmp_path, count, seed)
    assert not list(tmp_path.iterdir())


def test_a_tree_that_is_there_already_is_refused_and_left_alone(tmp_path: Path) -> None:
    written = write_phantoms(tmp_path, 2, seed=0)
    before = _bytes_below(written.root)
    with pytest.raises(UsageError, match="not empty"):
        write_phantoms(tmp_path, 3, seed=1)
    assert _bytes_below(written.root) == before


def test_an_empty_tree_is_filled(tmp_path: Path) -> None:
    (tmp_path / "kaggle_3m").mkdir()
    assert write_phantoms(tmp_path, 1, seed=0).slices == 1


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("not a folder")
    with pytest.raises(UsageError, match="a file is in its place"):
        write_phantoms(tmp_path / "taken", 1, seed=0)
