"""The end of a run: tables, masks and volumes that agree, whatever the rule for components drops."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from engine import finish as finish_module
from engine import table_worker
from engine.errors import MachineError
from engine.finish import Finish, finish
from engine.ledger import Ledger, SliceRow
from engine.outputs.components import Rule
from engine.outputs.masks import write_mask
from engine.outputs.pseudonyms import WITHHELD, Pseudonyms
from engine.outputs.rle import decode
from engine.rows import name_of, with_mask

Mask = npt.NDArray[np.uint8]

LARGEST = Rule.parse("largest")


def squares(*boxes: tuple[int, int, int]) -> Mask | None:
    """A mask of 40x40 with a square of so many pixels at each (top, left); None for none."""
    mask = np.zeros((40, 40), np.uint8)
    for top, left, side in boxes:
        mask[top : top + side, left : left + side] = 1
    return mask if boxes else None


@dataclasses.dataclass
class Scene:
    """An output folder whose ledger has the rows of slices in `masks`, written as a run writes them."""

    out: Path
    ledger: Ledger
    count: int = 0

    def add(self, volume: str, *masks: Mask | str | None, ending: str = "tif", png: bool = True) -> None:
        rows = []
        for mask in masks:
            self.count += 1
            name = f"{volume}/{self.count}.{ending}"
            stem = name.removeprefix("data/").encode()
            row = SliceRow(
                self.count.to_bytes(2, "big"), 0, volume, name, "ok", 1, 1, tumor_probability=0.5, stem=stem
            )
            if isinstance(mask, str):
                row = dataclasses.replace(
                    row,
                    status="quarantined",
                    tumor_probability=None,
                    stage="decode",
                    code=mask,
                    message=f"{name} ends early",
                )
            elif mask is None:
                row = with_mask(row, None)
            else:
                path = name_of("masks", stem).decode()
                row = with_mask(dataclasses.replace(row, mask_path=path if png else ""), mask)
                if png:
                    write_mask(bytes(self.out / path), mask)
            rows.append(row)
        self.ledger.commit(rows)

    def volumes(self) -> pd.DataFrame:
        return pd.read_csv(self.out / "volumes.csv").set_index("volume")

    def results(self) -> pd.DataFrame:
        return pd.read_csv(self.out / "results.csv")

    def masks(self) -> dict[str, int]:
        """Each mask on the disk by its name, with its pixels."""
        found = sorted((self.out / "masks").rglob("*.png"))
        return {path.name: cv2.countNonZero(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)) for path in found}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Ledger.open(tmp_path / "out" / "run.sqlite", {}, fresh=True) as ledger:
        yield Scene(tmp_path / "out", ledger)


@pytest.fixture(autouse=True)
def files_that_are_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_volumes_of_pictures_are_counted_without_millilitres(scene: Scene) -> None:
    scene.add("data/p1", None, squares((3, 4, 5)), "truncated", squares((5, 6, 10)), None)
    scene.add("data/p2", None, None)
    finish(scene.ledger, Finish(scene.out))
    one, two = scene.volumes().loc["data/p1"], scene.volumes().loc["data/p2"]
    assert one[["slices", "quarantined", "with_mask", "voxels", "components", "largest_voxels"]].tolist() == [
        5,
        1,
        2,
        125,
        1,
        125,
    ]
    box = ["bbox_x", "bbox_y", "bbox_z", "bbox_w", "bbox_h", "bbox_d"]
    assert one[box].tolist() == [4, 3, 1, 12, 12, 3]
    assert np.isnan(one["ml"])
    assert two[["slices", "voxels", "ml", "components", *box]].tolist() == [2, 0, 0, 0] + [0] * 6
    assert not (scene.out / "volumes").exists()


def test_the_largest_component_is_kept_across_a_slice_in_quarantine(scene: Scene) -> None:
    scene.add(
        "data/p", squares((3, 3, 5)), "truncated", squares((3, 3, 5), (30, 30, 6)), None, squares((3, 3, 6))
    )
    finish(scene.ledger, Finish(scene.out, components=LARGEST))
    assert scene.volumes().loc["data/p"][["voxels", "components", "with_mask"]].tolist() == [50, 1, 2]


def test_tables_masks_and_counts_agree_with_what_is_kept(scene: Scene) -> None:
    scene.add("data/p", squares((3, 3, 5)), squares((3, 3, 6), (30, 30, 4)), None, squares((20, 20, 7)))
    scene.add("data/q", squares((1, 1, 2)))
    finish(scene.ledger, Finish(scene.out, components=LARGEST, masks="png"))
    rows = scene.results()
    assert rows["has_mask"].tolist() == [1, 1, 0, 0, 1]
    assert rows["mask_pixels"].tolist() == [25, 36, 0, 0, 4]
    assert rows["bbox_w"].tolist() == [5, 6, 0, 0, 2]
    assert rows["mask_path"].notna().tolist() == [True, True, False, False, True]
    assert scene.masks() == {"1.tif_mask.png": 25, "2.tif_mask.png": 36, "5.tif_mask.png": 4}
    assert scene.ledger.counts().has_mask == 3
    assert (rows["tumor_probability"] == 0.5).all()


def test_another_end_gives_back_what_the_first_one_took(scene: Scene) -> None:
    how = Finish(scene.out, components=LARGEST)
    scene.add("data/p", squares((3, 3, 5)), None, squares((20, 20, 7)))
    finish(scene.ledger, how)
    assert scene.masks() == {"3.tif_mask.png": 49}
    # A slice that is scored later makes the other component the larger one.
    scene.count = 1
    scene.add("data/p", squares((3, 3, 6)))
    finish(scene.ledger, how)
    assert scene.masks() == {"1.tif_mask.png": 25, "2.tif_mask.png": 36}
    assert scene.results()["has_mask"].tolist() == [1, 1, 0]


def test_the_end_may_be_reached_twice_and_leaves_the_same(scene: Scene) -> None:
    how = Finish(scene.out, components=Rule.parse("30"))
    scene.add("data/p", squares((3, 3, 5)), None, squares((20, 20, 7), (2, 2, 3)))
    finish(scene.ledger, how)
    before = {path: path.read_bytes() for path in scene.out.rglob("*.[cp][sn][vg]")}
    finish(scene.ledger, how)
    assert {path: path.read_bytes() for path in scene.out.rglob("*.[cp][sn][vg]")} == before


def test_run_lengths_are_a_column_of_json_and_no_mask_file_is_asked_for(scene: Scene) -> None:
    scene.add("data/p", squares((3, 3, 5), (20, 20, 7)), None, png=False)
    finish(scene.ledger, Finish(scene.out, masks="rle", components=LARGEST))
    rows = scene.results()
    assert rows.columns[-1] == "mask_rle"
    assert decode(rows["mask_rle"][0]).sum() == 49
    assert rows["mask_rle"].isna().tolist() == [False, True]
    assert rows["mask_path"].isna().all()
    assert not (scene.out / "masks").exists()


def test_a_rule_in_millilitres_keeps_all_where_the_spacing_is_unknown_and_says_so(scene: Scene) -> None:
    scene.add("data/p", squares((3, 3, 5)))
    finish(scene.ledger, Finish(scene.out, components=Rule.parse("50ml")))
    assert scene.volumes().loc["data/p", "note"] == "all components kept: the spacing is unknown"
    assert scene.results()["has_mask"].tolist() == [1]


def test_a_volume_that_cannot_be_read_again_costs_its_own_file_and_is_named(scene: Scene) -> None:
    nibabel = pytest.importorskip("nibabel")
    scene.add("data/gone", squares((1, 1, 2)), ending="nii")
    Path("data/here").mkdir(parents=True)
    scene.add("data/here", None, ending="nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 1), np.uint8), np.eye(4)), Path("data/here/2.nii.gz"))
    with pytest.raises(MachineError, match=r"data/gone/1.nii: cannot be read again"):
        finish(scene.ledger, Finish(scene.out))
    assert scene.results()["has_mask"].tolist() == [1, 0]
    assert scene.volumes().loc["data/here", "mask_path"] == "volumes/here/2.nii.gz_mask.nii.gz"
    assert nibabel.load(scene.out / "volumes/here/2.nii.gz_mask.nii.gz").shape == (4, 4, 1)


def test_a_run_that_is_not_over_has_tables_and_no_mask_volumes(scene: Scene) -> None:
    nibabel = pytest.importorskip("nibabel")
    Path("data/p").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 1), np.uint8), np.eye(4)), Path("data/p/1.nii"))
    scene.add("data/p", None, ending="nii")
    finish(scene.ledger, Finish(scene.out), whole=False)
    assert len(scene.results()) == len(scene.volumes()) == 1
    assert not (scene.out / "volumes").exists()
    finish(scene.ledger, Finish(scene.out))
    assert (scene.out / "volumes" / "p" / "1.nii_mask.nii.gz").exists()


def test_nothing_that_leaves_the_house_names_a_file(scene: Scene, tmp_path: Path) -> None:
    names = Pseudonyms.open(tmp_path / "private")
    how = Finish(scene.out, parquet=True, pseudonyms=names, names=tmp_path / "private" / "names.csv")
    scene.add("data/jane_doe", None, "truncated", squares((3, 3, 5)), png=False)
    finish(scene.ledger, how)
    for path in scene.out.iterdir():
        if path.name != "run.sqlite":
            assert b"jane" not in path.read_bytes(), path.name
    errors = pd.read_csv(scene.out / "errors.csv")
    assert errors["message"].tolist() == [WITHHELD]
    who = pd.read_csv(tmp_path / "private" / "names.csv").set_index("pseudonym")["image_path"]
    assert [who[name] for name in scene.results()["image_path"]] == [
        f"data/jane_doe/{k}.tif" for k in (1, 2, 3)
    ]
    assert set(scene.results()["volume"]) == set(scene.volumes().index)


def test_a_folder_that_takes_no_file_is_one_line(scene: Scene) -> None:
    scene.add("data/p", None)
    with pytest.raises(MachineError, match="cannot be written"):
        finish(scene.ledger, Finish(Path("/proc/self")))


def made_anew(scene: Scene, how: Finish, *, whole: bool = True) -> bool:
    """Whether `finish` writes the tables, which it does not where they are there already."""
    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        for module, name in ((finish_module, "write_volumes"), (table_worker, "write_tables")):
            write = getattr(module, name)
            patch.setattr(module, name, lambda *words, _w=write, _n=name: (written.append(_n), _w(*words)))
        finish(scene.ledger, how, whole=whole)
    assert len(written) in (0, 2)
    return bool(written)


def test_tables_of_pictures_are_left_alone_while_no_row_changes(scene: Scene) -> None:
    how = Finish(scene.out)
    scene.add("data/p", squares((3, 3, 5)), "truncated", None)
    finish(scene.ledger, how)
    assert not made_anew(scene, how)
    scene.ledger.set_meta("seconds", 3.5)
    assert not made_anew(scene, how)
    scene.add("data/q", None)
    assert made_anew(scene, how)
    assert len(scene.results()) == 4
    assert not made_anew(scene, how)
    scene.ledger.forget([next(row.order for row in scene.ledger.rows())])
    assert made_anew(scene, how)
    assert len(scene.results()) == 3


@pytest.mark.parametrize("name", ["volumes.csv", "results.csv", "errors.csv"])
def test_a_table_that_was_touched_or_taken_away_is_made_anew(scene: Scene, name: str) -> None:
    how = Finish(scene.out)
    scene.add("data/p", squares((3, 3, 5)), None)
    finish(scene.ledger, how)
    tables = {path: path.read_bytes() for path in scene.out.glob("*.csv")}
    (scene.out / name).write_bytes(b"edited")
    assert made_anew(scene, how)
    assert {path: path.read_bytes() for path in scene.out.glob("*.csv")} == tables
    (scene.out / name).unlink()
    finish(scene.ledger, how)
    assert {path: path.read_bytes() for path in scene.out.glob("*.csv")} == tables


def test_other_options_and_volumes_of_headers_are_made_anew(scene: Scene) -> None:
    how = Finish(scene.out)
    scene.add("data/p", squares((3, 3, 5)), None)
    finish(scene.ledger, how)
    assert made_anew(scene, how, whole=False)
    assert made_anew(scene, how)
    for other in (
        dataclasses.replace(how, masks="rle"),
        dataclasses.replace(how, probabilities=True),
        dataclasses.replace(how, components=LARGEST),
        dataclasses.replace(how, components=LARGEST),
    ):
        assert made_anew(scene, other)
    assert made_anew(scene, how)
    assert not made_anew(scene, how)


def test_tables_that_a_kill_cut_short_are_made_anew(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    how = Finish(scene.out)
    scene.add("data/p", None)
    finish(scene.ledger, how)
    scene.add("data/q", None)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(table_worker, "write_tables", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(scene.ledger, how)
    finish(scene.ledger, how)
    assert len(scene.results()) == 2
