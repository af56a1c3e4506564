"""`from engine import score`, as notebooks and programs use it."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

import engine
from engine import score
from engine.errors import UsageError
from tests.runs import environment, results, table, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle, tiny_slice, tiny_slices

# Options of the command that are about its screen, or about other machines.
OF_THE_COMMAND = {"config", "dry_run", "quiet", "log_format", "metrics", "inputs"}
PROGRAM = """
from engine import score
found = [result for result in score("data", bundle="bundle", workers=1)]
assert sorted(result.path.name for result in found) == ["s_0.tif", "s_1.tif", "s_2.tif"], found
assert [result.has_mask for result in sorted(found, key=lambda each: each.path.name)] == [True, False, True]
print("scored", len(found))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    make_tiny_bundle(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with three slices in data/; what is temporary lies in temporary/."""
    write_slices(tmp_path / "data", 3)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left_behind(folder: Path) -> list[Path]:
    return list((folder / "temporary").iterdir())


def by_name(run: Any) -> dict[str, engine.Result]:
    return {result.path.name: result for result in run}


def test_an_output_may_be_a_file_address(folder: Path, bundle: Path) -> None:
    out = f"file://{folder}/out"
    for _ in score("data", out=out, bundle=bundle, workers=1, limit=2):
        pass
    again = list(score("data", out=out, bundle=bundle, workers=1))
    assert len(again) == 3
    assert all(result.mask_path.exists() for result in again if result.mask_path is not None)


def test_results_are_the_rows_and_masks_of_the_tables(folder: Path, bundle: Path) -> None:
    write_slices(folder / "data", 4, first=3)
    (folder / "data" / "p1" / "bad.png").write_bytes(b"no image")
    with score("data", out="out", bundle=bundle, workers=1) as run:
        found = by_name(run)
        frame = run.to_frame()
    rows = table(folder / "out")
    assert len(found) == len(rows) == len(frame) == 8
    for row in rows.to_dict("records"):
        result = found[Path(str(row["image_path"])).name]
        assert str(result.path) == row["image_path"]
        assert result.volume == row["volume"]
        if row["status"] == "quarantined":
            assert result.error is not None
            assert (result.error.stage, result.error.code) == ("decode", "not_an_image")
            assert (result.tumor_probability, result.has_mask, result.mask) == (None, False, None)
            continue
        assert result.error is None
        assert result.tumor_probability == pytest.approx(float(row["tumor_probability"]), abs=1e-6)
        assert result.mask_pixels == int(row["mask_pixels"])
        assert result.has_mask == (row["has_mask"] == "1") == (result.mask is not None)
        if result.mask is None:
            assert result.box is None
            continue
        assert result.mask_path is not None
        written = cv2.imread(str(result.mask_path), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(result.mask * 255, np.asarray(written))
        assert result.mask.sum() == result.mask_pixels
        assert result.box == tuple(int(row[f"bbox_{each}"]) for each in "xywh")
    assert list(frame["image_path"]) == list(rows["image_path"])
    assert list(frame.loc[frame["status"] == "quarantined", "code"]) == ["not_an_image"]
    assert run.outcome is not None
    assert run.outcome.finished


def test_a_run_that_was_left_is_continued_and_gives_every_slice_once(
    folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(160):  # more than a run holds at a time
        os.link(folder / "data" / "p0" / "s_0.tif", folder / "data" / f"{number}.tif")
    (folder / "data" / "bad.png").write_bytes(b"no image")
    with monkeypatch.context() as patch:
        patch.setattr("engine.pipeline.COMMIT_ROWS", 1)
        patch.setattr("engine.notebook.iterating._AHEAD", 1)
        for _ in score("data", out="out", bundle=bundle, workers=1, batch=1):
            break
    assert not (folder / "out" / "run.lock").exists()
    assert not (folder / "out" / "results.csv").exists()
    run = score("data", out="out", bundle=bundle, workers=1)
    names = [str(result.path) for result in run]
    assert len(names) == len(set(names)) == 164
    assert run.outcome is not None
    assert 0 < run.outcome.totals.slices < 164
    again = score("data", out="out", bundle=bundle, workers=1)
    assert sorted(str(result.path) for result in again) == sorted(table(folder / "out")["image_path"])
    whole = tumorscan("score", "data", "--out", "whole", "--bundle", bundle, "--quiet", cwd=folder)
    assert whole.status == 4
    assert results(folder / "out") == results(folder / "whole")


def test_without_an_output_folder_nothing_is_kept(folder: Path, bundle: Path) -> None:
    before = set(folder.rglob("*"))
    for result in score("data", bundle=bundle, workers=1):
        assert result.mask_path is None
        assert len(left_behind(folder)) == 1
        assert left_behind(folder)[0].stat().st_mode & 0o777 == 0o700
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize("lazy", [False, True])
def test_arrays_are_scored_as_files_of_them_are(folder: Path, bundle: Path, lazy: bool) -> None:
    wide = tiny_slices(6)[:, :200]
    for number, image in enumerate(wide):
        cv2.imwrite(str(folder / "data" / f"{number}.png"), image[:, :, ::-1])
    files = by_name(score(*sorted((folder / "data").glob("*.png")), bundle=bundle, workers=1))
    images = (image for image in wide) if lazy else wide
    found = {result.index: result for result in score(images=images, bundle=bundle, workers=1)}
    assert sorted(found) == list(range(6))
    for number, result in found.items():
        file = files[f"{number}.png"]
        assert (result.path, result.volume) == (None, "")
        assert (result.tumor_probability, result.mask_pixels) == (file.tumor_probability, file.mask_pixels)
        assert (result.mask is None) == (file.mask is None)
        if result.mask is not None:
            assert result.mask.shape == (200, 256)
            assert np.array_equal(result.mask, file.mask)
    assert left_behind(folder) == []


def test_a_stack_of_other_numbers_has_one_window(folder: Path, bundle: Path) -> None:
    bright = tiny_slice(0, lesion=True).astype(np.float32)[:, :, 1] * 3 + 10
    dark = bright / 10
    stack = {each.index: each for each in score(images=np.stack([bright, dark]), bundle=bundle, workers=1)}
    alone = {each.index: each for each in score(images=[bright, dark], bundle=bundle, workers=1)}
    assert (stack[0].has_mask, stack[1].has_mask) == (True, False)
    assert (alone[0].has_mask, alone[1].has_mask) == (True, True)


def test_a_frame_of_arrays_counts_them(folder: Path, bundle: Path) -> None:
    frame = score(images=tiny_slices(3), bundle=bundle, workers=1).to_frame()
    assert list(frame["index"]) == [0, 1, 2]
    assert list(frame["has_mask"]) == [1, 0, 1]


def test_an_iterable_that_fails_ends_the_run_with_its_error(folder: Path, bundle: Path) -> None:
    def images() -> Iterator[npt.NDArray[np.uint8]]:
        yield tiny_slice(0, lesion=True)
        raise KeyError("no more")

    run = score(images=images(), bundle=bundle, workers=1)
    with pytest.raises(KeyError, match="no more"):
        list(run)
    assert list(run) == []


def test_an_array_that_is_no_slice_is_named(folder: Path, bundle: Path) -> None:
    images = [tiny_slice(0, lesion=True), np.zeros((4, 4, 2), np.uint8)]
    with pytest.raises(UsageError, match=r"images\[1\] is uint8 \[4, 4, 2\]"):
        list(score(images=images, bundle=bundle, workers=1))
    assert left_behind(folder) == []


def test_components_are_dropped_before_results_are_given(folder: Path, bundle: Path) -> None:
    found = by_name(score("data", out="out", bundle=bundle, workers=1, components="9999"))
    assert [result.has_mask for result in found.values()] == [False] * 3
    assert list(table(folder / "out")["has_mask"]) == ["0"] * 3


def test_a_run_may_be_iterated_in_a_thread_and_under_a_running_loop(folder: Path, bundle: Path) -> None:
    counts: list[int] = []

    def count() -> None:
        counts.append(len(list(score("data", bundle=bundle, workers=1))))

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()

    async def cell() -> None:
        count()

    asyncio.run(cell())
    assert counts == [3, 3]


@pytest.mark.parametrize("how", ["file", "stdin", "no __main__ file"])
def test_programs_score_however_they_are_run(folder: Path, bundle: Path, how: str) -> None:
    (folder / "bundle").symlink_to(bundle)
    (folder / "program.py").write_text(PROGRAM)
    words = {"file": ["program.py"], "stdin": ["-"], "no __main__ file": ["-c", PROGRAM]}[how]
    line = [sys.executable, "-W", "error", *words]
    done = subprocess.run(
        line, cwd=folder, env=environment(), input=PROGRAM, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "scored 3\n", "")


def test_a_program_that_ends_amid_a_run_leaves_it_resumable(folder: Path, bundle: Path) -> None:
    write_slices(folder / "data", 40, first=3)
    program = (
        "from engine import score\n"
        f"run = score('data', out='out', bundle={str(bundle)!r}, workers=1, batch=1)\n"
        "print(next(run).path is not None)\n"
    )
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert not (folder / "out" / "run.lock").exists()
    assert len(list(score("data", out="out", bundle=bundle, workers=1))) == 43


def test_ctrl_c_while_waiting_closes_the_run(
    folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = score("data", out="out", bundle=bundle, workers=1)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run._handing, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    assert list(run) == []
    with pytest.raises(UsageError, match="closed before"):
        run.to_frame()


def test_a_run_that_is_never_iterated_does_nothing(folder: Path, bundle: Path) -> None:
    score("data", out="out", bundle=bundle)
    score("data", bundle=bundle)
    gc.collect()
    assert not (folder / "out").exists()
    assert left_behind(folder) == []


def test_errors_of_the_run_are_raised_where_it_is_iterated(folder: Path, bundle: Path) -> None:
    list(score("data", out="out", bundle=bundle, workers=1))
    with pytest.raises(UsageError, match="threshold"):
        list(score("data", out="out", bundle=bundle, workers=1, threshold=0.9))
