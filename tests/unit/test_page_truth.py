"""True masks: which one belongs to a slice, and what is counted of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.errors import UsageError
from engine.page.results import read_results
from engine.page.tally import tally
from engine.page.truth import Judged, dice, judge
from tests.pages import Spot, spots, write_results, write_truth

FOUND, SHIFTED = (10, 10, 20), (10, 20, 20)


def nothing() -> None:
    """Progress that nobody sees."""


def judged(out: Path, data: Path) -> list[Judged | None]:
    return list(judge(read_results(out), data, nothing).judged)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_kind_of_slice_is_told(here: Path) -> None:
    out = write_results(
        here,
        [
            Spot("data/p", "hit.tif", 0.9, FOUND, SHIFTED),
            Spot("data/p", "missed.tif", 0.1, None, FOUND),
            Spot("data/p", "alarm.tif", 0.9, FOUND, None),
            Spot("data/p", "clear.tif", 0.1, None, None),
        ],
    )
    hit, missed, alarm, clear = judged(out, Path("data"))
    assert hit
    assert missed
    assert alarm
    assert clear
    assert (hit.overlap, hit.dice) == ((200, 200, 200), 0.5)
    assert (missed.missed, missed.dice) == (True, 0.0)
    assert (alarm.false_alarm, alarm.dice) == (True, 0.0)
    assert (clear.missed, clear.false_alarm, clear.dice) == (False, False, 1.0)


def test_figures_pool_the_pixels_of_a_volume(here: Path) -> None:
    out = write_results(
        here,
        [
            Spot("data/p", "a.tif", 0.9, FOUND, SHIFTED),
            Spot("data/p", "b.tif", 0.1, None, FOUND),
            Spot("data/q", "c.tif", 0.1, None, None),
        ],
    )
    results = read_results(out)
    figures = tally(results.slices, judge(results, Path("data"), nothing).judged, 0.5)
    assert figures.against is not None
    assert [volume.dice for volume in figures.volumes] == [dice(200, 200, 600), 1.0]
    assert figures.against.dice_volume == (dice(200, 200, 600) + 1) / 2
    assert figures.against.dice_tumour == 0.25
    assert (figures.against.sensitivity, figures.against.specificity) == (0.5, 1.0)
    assert figures.gated_out == 2


def test_a_quarantined_slice_counts_as_one_without_a_mask(here: Path) -> None:
    out = write_results(here, [*spots(3), Spot("data/p0", "bad.tif", None)])
    write_truth(here / "data/p0/bad.tif", np.ones((8, 8), np.uint8))
    last = judged(out, Path("data"))[-1]
    assert last
    assert last.missed
    assert last.overlap == (0, 0, 64)


def test_true_masks_of_a_tree_that_lies_elsewhere_are_found_by_folder_and_name(here: Path) -> None:
    out = write_results(here, spots(6))
    (here / "data").rename(here / "moved")
    truth = judge(read_results(out), Path("moved"), nothing)
    assert all(truth.judged)
    assert "by folder and file name" in truth.notes[0]


def test_slices_without_a_true_mask_are_left_out_and_counted(here: Path) -> None:
    out = write_results(here, spots(6))
    (here / "data/p0/s_1_mask.tif").unlink()
    truth = judge(read_results(out), Path("data"), nothing)
    assert truth.judged[1] is None
    assert truth.notes == ("1 of 6 slices have no true mask and are left out of its figures.",)


def test_a_true_mask_that_cannot_be_read_is_told(here: Path) -> None:
    out = write_results(here, spots(6))
    (here / "data/p0/s_1_mask.tif").write_bytes(b"no image")
    truth = judge(read_results(out), Path("data"), nothing)
    assert truth.judged[1] is None
    assert "1 true masks cannot be read, the first is data/p0/s_1_mask.tif" in truth.notes[0]


def test_masks_that_were_not_kept_leave_dice_unknown(here: Path) -> None:
    out = write_results(here, spots(6))
    (out / "masks/0_mask.png").unlink()
    results = read_results(out)
    found = judge(results, Path("data"), nothing).judged
    assert found[0]
    assert (found[0].tumour, found[0].overlap, found[0].dice) == (True, None, None)
    figures = tally(results.slices, found, 0.5)
    assert figures.against is not None
    assert figures.against.dice_volume is None
    assert figures.against.hits == 2


def test_the_set_that_kaggle_packs_twice_is_read_once(here: Path) -> None:
    out = write_results(here, spots(6))
    (here / "archive/lgg").mkdir(parents=True)
    (here / "data").rename(here / "archive/kaggle_3m")
    write_truth(here / "archive/lgg/kaggle_3m/p0/s_0.tif", np.zeros((64, 64), np.uint8))
    assert all(judged(out, Path("archive")))


def test_truth_that_cannot_be_of_this_run_is_refused(here: Path) -> None:
    out = write_results(here, spots(3))
    (here / "empty").mkdir()
    write_truth(here / "other/q/x.tif", np.zeros((4, 4), np.uint8))
    write_truth(here / "small/p0/s_0.tif", np.zeros((4, 4), np.uint8))
    for folder in ("one", "two"):
        write_truth(here / "twice" / folder / "p0/s_0.tif", np.zeros((64, 64), np.uint8))
    for data, said in (
        ("missing", "no such folder"),
        ("empty", "holds no true masks"),
        ("other", "has no mask of any slice"),
        ("small", "--truth is of other images"),
        ("twice", "has p0/s_0 twice"),
    ):
        with pytest.raises(UsageError) as refused:
            judge(read_results(out), Path(data), nothing)
        assert said in str(refused.value)
