"""`tumorscan report` as a user types it, on a run of `tumorscan score`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.page.make import Options, make_page
from engine.page.results import read_results
from engine.page.tally import tally
from engine.page.truth import judge
from tests.badfiles import tiff
from tests.runs import Ran, environment, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle, tiny_slice

SLICES = 14
LESIONS = 9  # every slice but numbers 1, 4, 7, 10, 13


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored folder of slices with their truth, never changed."""
    folder = tmp_path_factory.mktemp("scored")
    make_tiny_bundle(folder / "bundle")
    for path in write_slices(folder / "data", SLICES):
        number = int(path.stem.rpartition("_")[2])
        bright = (tiny_slice(number, lesion=number % 3 != 1)[..., 1] >= 220).astype(np.uint8)
        mask = tiff(256, 256, channels=1, pixels=bright.tobytes())
        path.with_name(f"{path.stem}_mask.tif").write_bytes(mask)
    words = ("--bundle", "bundle", "--out", "results", "--backend", "onnxruntime", "--workers", "1")
    ran = tumorscan("score", "data", *words, cwd=folder)
    assert ran.status == 0, ran.err
    return folder


@pytest.fixture
def folder(tmp_path: Path, scored: Path) -> Path:
    shutil.copytree(scored, tmp_path, dirs_exist_ok=True)
    return tmp_path


def report(folder: Path, *words: str | Path) -> Ran:
    return tumorscan("report", *words, cwd=folder)


def assert_refused(ran: Ran, said: str) -> None:
    assert ran.status == 2, ran.err
    assert ran.err.count("\n") == 1, ran.err
    assert said in ran.err
    assert ran.out == ""


def test_the_page_of_a_run_is_made_without_a_word_too_many(folder: Path) -> None:
    ran = report(folder, "results")
    size = (folder / "results" / "index.html").stat().st_size
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"results/index.html: 14 of 14 slices, {size / 1e6:.1f} MB\n"
    text = (folder / "results" / "index.html").read_text("utf-8")
    for said in ("14 slices of 4 volumes", "tiny", "finished", "onnxruntime"):
        assert said in text
    assert report(folder, "results", "--quiet") == Ran(0, "", "")


def test_a_page_with_truth_says_what_evaluate_measures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = pytest.importorskip("trainer.evaluate")
    ran = report(folder, "results", "--truth", "data", "--out", "truth.html")
    assert (ran.status, ran.err) == (0, "")
    monkeypatch.chdir(folder)
    measured = evaluation.evaluate("results", "data", resamples=10).measures
    results = read_results(Path("results"))
    counted = tally(results.slices, judge(results, Path("data"), lambda: None).judged, 0.5).against
    assert counted is not None
    metrics = measured.metrics["volume"]["dice"]
    assert counted.dice_volume == pytest.approx(metrics.mean)
    assert counted.dice_volume_median == pytest.approx(metrics.median)
    assert counted.volumes == metrics.n
    assert counted.dice_tumour == pytest.approx(measured.metrics["tumour_slice"]["dice"].mean)
    for name in ("sensitivity", "specificity"):
        assert getattr(counted, name) == pytest.approx(measured.metrics["has_mask"][name].value)
    assert f"{counted.dice_volume:.3f}" in Path("truth.html").read_text("utf-8")


def test_the_page_is_of_the_truth_that_it_is_given(folder: Path) -> None:
    (folder / "data").rename(folder / "moved")
    ran = report(folder, "results", "--truth", "moved")
    assert ran.status == 0
    assert "note: True masks were found by folder and file name" in ran.err
    assert "note: 14 of 14 pictures cannot be shown" in ran.err


def test_a_run_that_was_killed_has_a_page(folder: Path) -> None:
    for name in ("results.csv", "errors.csv", "run.json"):
        (folder / "results" / name).unlink()
    ran = report(folder, "results")
    assert ran.status == 0
    assert "note: The run has not finished" in ran.err
    assert "not finished" in (folder / "results" / "index.html").read_text("utf-8")


def test_masks_that_stand_in_the_ledger_only_are_outlined(folder: Path) -> None:
    """The ledger keeps each mask as run lengths, so a killed run needs no PNG."""
    for name in ("results.csv", "errors.csv", "run.json"):
        (folder / "results" / name).unlink()
    shutil.rmtree(folder / "results" / "masks")
    assert "outlines are missing" not in report(folder, "results").err


def test_wrong_use_is_refused_in_one_line(scored: Path) -> None:
    assert_refused(report(scored, "missing"), "no such folder")
    assert_refused(report(scored, "data"), "neither results.csv nor run.sqlite")
    assert_refused(report(scored, "results", "--limit", "0"), "--limit")
    assert_refused(report(scored), "RESULTS")


def test_the_page_needs_nothing_of_the_trainer(folder: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('pandas', 'tensorflow', 'keras', 'onnx', 'matplotlib'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from engine.page.make import Options, make_page\n"
        "make_page(Options(Path('results'), truth=Path('data')), lambda text, steps: lambda: None)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), check=True)


@pytest.mark.slow
def test_four_thousand_slices_make_a_page_that_a_browser_can_hold(tmp_path: Path) -> None:
    """The size is asserted, the time is not: it depends on the machine."""
    from tests.pages import spots, write_results

    out = write_results(tmp_path, spots(4_000, volumes=100))
    made = make_page(Options(out, root=tmp_path, truth=tmp_path / "data"), lambda text, steps: lambda: None)
    assert made.shown_slices == 4_000
    assert made.size < 60e6
