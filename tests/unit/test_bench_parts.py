"""What the benchmarks stand on: files, null models, results, tables, and whether a peer computes the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import child, report, results, tables
from benchmarks.bound import mixed_rate
from benchmarks.host import _core_counts
from benchmarks.machine import describe
from benchmarks.memory import PeakMemory, family
from benchmarks.null import PASSES, NullRunner, hashed_share, null_models
from benchmarks.peers.check import Agreement, compare, read_masks
from benchmarks.peers.job import COLUMNS, Job, Results
from benchmarks.plots import draw
from benchmarks.report import BEGIN, END, readme_section, with_section, write_pages
from benchmarks.results import Data, Name, Result, Rows, Series
from benchmarks.scaling import Tree, _trees
from benchmarks.slices import cached, chill, replicate, warm, work_set
from engine.errors import UsageError
from engine.run import Options
from engine.scoring import score
from tests.runs import table, write_slices
from tests.tinybundle import make_tiny_bundle, tiny_slices

# Files


def test_the_steady_rate_is_that_of_the_middle_half() -> None:
    ramp = [(0.5, 100), (1.0, 200)]
    middle = [(1.0 + 0.1 * k, 200 + 100 * k) for k in range(1, 16)]
    assert child._steady([*ramp, *middle, (5.0, 2000)]) == pytest.approx(1000.0)
    assert child._steady([(0.0, 100), (0.4, 2000)]) == 0.0
    assert child._steady([]) == 0.0


def test_files_are_spread_over_the_data_and_linked_under_their_own_names(tmp_path: Path) -> None:
    write_slices(tmp_path / "data", 20)
    work = work_set(tmp_path / "data", 5, tmp_path / "work")
    assert len(work.files) == 5
    assert {file.parent.name for file in work.files} == {"p0", "p1", "p2", "p3"}
    for file in work.files:
        assert file.samefile(tmp_path / "data" / file.relative_to(tmp_path / "work"))
    assert work.data == Data(name="data", files=5, bytes=sum(file.stat().st_size for file in work.files))


def test_fewer_files_than_asked_for_are_taken_once_each(tmp_path: Path) -> None:
    write_slices(tmp_path / "data", 3)
    assert len(work_set(tmp_path / "data", 50, tmp_path / "work").files) == 3


def test_without_data_phantoms_are_drawn(tmp_path: Path) -> None:
    work = work_set(None, 6, tmp_path / "work")
    assert (work.name, len(work.files)) == ("phantoms", 6)


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no slices in"):
        work_set(tmp_path, 6, tmp_path / "work")


def test_many_files_are_made_of_few_in_folders_of_a_size(tmp_path: Path) -> None:
    files = write_slices(tmp_path / "data", 3)
    replicate(files, tmp_path / "many", 25, 10)
    made = sorted((tmp_path / "many").rglob("*.tif"))
    assert [len(list(folder.iterdir())) for folder in sorted((tmp_path / "many").iterdir())] == [10, 10, 5]
    assert {path.stat().st_ino for path in made} == {path.stat().st_ino for path in files}


def test_a_copy_is_made_where_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_slices(tmp_path / "data", 2)

    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    replicate(files, tmp_path / "many", 4, 4)
    made = sorted((tmp_path / "many").rglob("*.tif"))
    assert [path.read_bytes() for path in made] == [files[i % 2].read_bytes() for i in range(4)]


def test_files_are_dropped_from_the_page_cache_and_read_into_it_again(tmp_path: Path) -> None:
    files = write_slices(tmp_path, 3)
    warm(files)
    assert cached(files) == 1
    chill(files)
    if cached(files) == 1:
        pytest.skip("this file system has no page cache to drop from")
    assert cached(files) == 0
    warm(files)
    assert cached(files) == 1


# Null models


def test_null_models_pass_about_their_share_by_the_pixels_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2000, 256, 256, 3), np.uint8)
    shares = hashed_share(images)
    assert abs(float((shares < PASSES).mean()) - PASSES) < 0.04
    np.testing.assert_array_equal(hashed_share(images[5:6]), shares[5:6])


def test_a_null_segmenter_draws_a_lesion_of_usual_size() -> None:
    answers = NullRunner("segmenter").infer(tiny_slices(3))
    assert answers["mask"].shape == (3, 256, 256)
    assert set(np.unique(answers["mask"])) == {0, 1}
    assert 0.015 < float(answers["mask"][0].mean()) < 0.035
    assert answers["mask_pixels"].tolist() == [int(mask.sum()) for mask in answers["mask"]]


def test_a_run_takes_null_models_while_they_are_in_place(tmp_path: Path) -> None:
    make_tiny_bundle(tmp_path / "bundle")
    write_slices(tmp_path / "data", 12)
    options = Options((str(tmp_path / "data"),), tmp_path / "out", tmp_path / "bundle", precision="fp32")
    with null_models():
        outcome = score(options)
    assert outcome.finished
    assert set(table(tmp_path / "out")["tumor_probability"]) <= {"0", "1"}


def test_a_run_in_a_process_of_its_own_says_what_it_took(tmp_path: Path) -> None:
    make_tiny_bundle(tmp_path / "bundle")
    write_slices(tmp_path / "data", 40)
    job = child.Job([str(tmp_path / "data")], str(tmp_path / "out"), str(tmp_path / "bundle"), null=True)
    ran = child.run(job, memory=True)
    assert ran.slices == 40
    assert ran.passed == ran.has_mask
    assert 0 < ran.first_result < ran.total
    assert ran.peak_bytes > 20e6
    assert child.run(job).slices == 0


# Memory


def test_the_memory_of_descendants_counts() -> None:
    code = "import time; held = bytearray(200_000_000); print('ready', flush=True); time.sleep(60)"
    shell = subprocess.Popen(
        ["sh", "-c", f'"$0" -c "{code}"; true', sys.executable], stdout=subprocess.PIPE, text=True
    )
    try:
        assert shell.stdout is not None
        shell.stdout.readline()
        with PeakMemory(shell.pid) as peak:
            deadline = time.monotonic() + 20
            while peak.bytes < 200e6 and time.monotonic() < deadline:
                time.sleep(0.1)
        assert 200e6 < peak.bytes < 400e6
    finally:
        for process in reversed(family(shell.pid)):
            os.kill(process, 9)
        shell.communicate()


# Results


def result(name: Name, rows: Rows, tmp_path: Path, *, quick: bool = False) -> Result:
    return Result(
        benchmark=name,
        quick=quick,
        revision="abc",
        bundle_sha256="0" * 64,
        started=datetime(2026, 1, 1, tzinfo=UTC),
        minutes=1.0,
        settings={"repeats": 3},
        machine=describe(tmp_path, 0.1),
        data=Data(name="lgg", files=10, bytes=2_000_000),
        rows=rows.gathered(),
        notes=("Ray is left out",),
    )


def some_results(tmp_path: Path, *, quick: bool = False) -> list[Result]:
    throughput, peers, host, scaling = Rows(), Rows(), Rows(), Rows()
    of = {"backend": "openvino", "precision": "bf16", "models": "bf16"}
    for rate in (39.0, 40.0, 44.0):
        throughput.add({**of, "rate": "bound"}, "rate", "slices/s", rate + 1)
        throughput.add({**of, "rate": "runner only"}, "rate", "slices/s", rate)
        throughput.add({**of, "rate": "runner only"}, "of the bound", "1", rate / (rate + 1))
        throughput.add({**of, "stage": "decode"}, "CPU", "ms/slice", 0.1)
        ours = {"program": "tumorscan", "title": "tumorscan", "precision": "fp32"}
        other = {"program": "article_loop", "title": "the article's loop", "precision": "fp32"}
        peers.add(ours, "rate", "slices/s", rate)
        peers.add(other, "rate", "slices/s", rate / 4)
        peers.add(ours, "times the article's loop (fp32)", "1", 4.0)
        for cores in (1, 2):
            host.add({"what": "pipeline", "cores": str(cores)}, "steady rate", "slices/s", 4000.0 * cores)
        host.add({"what": "pipeline by stage", "cores": "2", "stage": "decode"}, "CPU", "us/slice", 90.0)
        host.add({"what": "part", "part": "decode"}, "rate", "slices/s", 11_000.0)
        for files in (1000, 10_000):
            tree = Tree(files)
            scaling.add(tree.of, "steady rate", "slices/s", 8000.0)
            scaling.add(tree.of, "peak memory", "MB", 200.0)
            scaling.add(tree.of, "first result", "s", 1.5)
    named: list[tuple[Name, Rows]] = [
        ("throughput", throughput), ("peers", peers), ("host", host), ("scaling", scaling)
    ]  # fmt: skip
    return [result(name, rows, tmp_path, quick=quick) for name, rows in named]


def test_a_series_has_a_median_and_a_spread() -> None:
    series = Series(unit="s", values=(1.0, 4.0, 2.0))
    assert (series.median, series.spread) == (2.0, 1.5)


def test_results_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    for each in some_results(tmp_path):
        results.write(each, tmp_path)
        assert results.read(each.benchmark, tmp_path) == each
    assert results.read("host", tmp_path / "nowhere") is None


def test_the_schema_that_lies_with_the_results_is_theirs() -> None:
    assert results.SCHEMA.read_text() == results.schema()


def test_results_that_lie_in_the_checkout_can_be_read_and_name_no_dry_run() -> None:
    for name in ("throughput", "peers", "host", "scaling"):
        found = results.read(name)  # type: ignore[arg-type]
        assert found is None or not found.quick


def test_results_are_found_by_what_they_are_of(tmp_path: Path) -> None:
    throughput = some_results(tmp_path)[0]
    assert throughput.median("rate", precision="bf16", rate="bound") == 41.0
    assert throughput.median("rate", precision="fp32") is None


def test_tables_show_medians_and_shares(tmp_path: Path) -> None:
    throughput, peers, host, scaling = some_results(tmp_path)
    assert "| bf16 | 41 | 40 (0.98) |" in tables.throughput(throughput)
    assert "| decode | 0.1 |" in tables.cpu_by_stage(throughput)
    lines = tables.peers(peers).splitlines()
    assert lines[2].startswith("| tumorscan | fp32 | 40 | 39 to 44 |")
    assert lines[3] == "| the article's loop | fp32 | 10 | 9.75 to 11 | 4 |"
    assert "| fp32 | 4 |" in tables.peers_in_float32(peers)
    assert "| 2 |  | 8,000 |" in tables.host_pipeline(host)
    assert "| decode | 11,000 |" in tables.host_parts(host)
    assert "| 10,000 | folders | 8,000 | 1.5 |" in tables.scaling(scaling)
    assert "medians of 3 interleaved repeats" in tables.machine_line(host)


def test_pages_name_what_was_left_out_and_show_pictures(tmp_path: Path) -> None:
    write_pages(some_results(tmp_path), tmp_path)
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.count("- Ray is left out") == 4
    for name in ("throughput", "peers", "host", "scaling"):
        assert f"({name}.svg)" in page
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    assert "dry run" not in page


def test_the_report_takes_what_results_there_are_and_keeps_dry_runs_from_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme, text = tmp_path / "README.md", f"{BEGIN}\n{END}\n"
    readme.write_text(text)
    words = ["report", "--results", str(tmp_path), "--readme", str(readme)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(UsageError, match="holds no results"):
        report.main()
    results.write(some_results(tmp_path, quick=True)[0], tmp_path)
    report.main()
    assert "A dry run on a few slices" in (tmp_path / "RESULTS.md").read_text()
    assert readme.read_text() == text
    results.write(some_results(tmp_path)[1], tmp_path)
    report.main()
    assert "| the article's loop | fp32 | 10 |" in readme.read_text()


def test_a_picture_of_the_same_result_is_the_same_file(tmp_path: Path) -> None:
    peers = some_results(tmp_path)[1]
    for name in ("a.svg", "b.svg"):
        draw(peers, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_readme_changes_between_its_markers_alone(tmp_path: Path) -> None:
    section = readme_section(some_results(tmp_path))
    text = f"# Title\n\n{BEGIN}\nstale\n{END}\n\nrest\n"
    made = with_section(text, section)
    assert made.startswith("# Title\n\n")
    assert made.endswith(f"{END}\n\nrest\n")
    assert "stale" not in made
    assert with_section(made, section) == made


def test_a_readme_without_the_second_marker_is_refused() -> None:
    with pytest.raises(UsageError, match="and no"):
        with_section(f"# Title\n{BEGIN}\n", "section")


# Settings


def test_the_bound_of_a_mix_lies_between_those_of_its_models() -> None:
    assert mixed_rate(40.0, 80.0, 0.0) == 40.0
    assert mixed_rate(40.0, 80.0, 1.0) == pytest.approx(80 / 3)


def test_core_counts_are_powers_of_two_and_all_there_are() -> None:
    most = len(os.sched_getaffinity(0))
    assert _core_counts(None)[0] == 1
    assert _core_counts(None)[-1] == most
    with pytest.raises(UsageError, match="give numbers from 1"):
        _core_counts(str(most + 1))


def test_trees_grow_by_tens_and_the_largest_is_once_flat() -> None:
    assert [tree.files for tree in _trees(100_000)] == [1000, 10_000, 100_000, 100_000]
    assert [tree.of["layout"] for tree in _trees(2000)] == ["folders", "folders", "one flat folder"]


# Peers


def job(tmp_path: Path, files: list[str]) -> Job:
    return Job(files, str(tmp_path), {}, {}, False, 0.5, 0.5, 10, "fp32", False, 4, 1)


def test_a_peer_leaves_masks_and_a_table_in_the_order_of_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["/data/p1/b.tif", "/data/p1/a.tif", "/data/p2/c.tif"]
    probability = np.zeros((256, 256), np.float32)
    probability[10:20, 30:50] = 0.9
    left = Results(job(tmp_path, files))
    left.add(files[2], 0.1)
    left.add(files[0], 0.75, probability)
    left.add(files[1], 0.9, np.where(np.arange(256) < 9, 1.0, 0.0) * np.eye(256)[0][:, None])
    left.finish()
    found = table(tmp_path)
    assert tuple(found.columns) == COLUMNS
    assert found["image_path"].tolist() == files
    assert found["has_mask"].tolist() == ["1", "0", "0"]  # nine pixels are fewer than ten
    assert found["mask_pixels"].tolist() == ["200", "0", "0"]
    masks = read_masks(tmp_path)
    assert masks[files[1]] is None
    np.testing.assert_array_equal(masks[files[0]], probability >= 0.5)
    assert '"slices": 3' in capsys.readouterr().out


def test_other_masks_are_no_peer() -> None:
    mask = np.zeros((256, 256), np.bool_)
    mask[:10, :10] = True
    other = np.roll(mask, 1, axis=0)
    reference = {"a": mask, "b": None, "c": None}
    assert compare(reference, reference).broken("fp32") == ""
    assert compare(reference, {**reference, "a": other}) == Agreement(3, 0, 1, 0.9)
    assert "overlap by 0.9000" in compare(reference, {**reference, "a": other}).broken("bf16")
    assert "differs on 1 of 3" in compare(reference, {**reference, "b": mask}).broken("fp32")
    assert compare(reference, {**reference, "b": mask}).broken("bf16") == ""
    with pytest.raises(ValueError, match="1 slices were scored, 3 were given"):
        compare(reference, {"a": mask})


def test_a_mask_that_a_peer_promised_and_did_not_write_is_an_error(tmp_path: Path) -> None:
    left = Results(job(tmp_path, ["/data/a.tif"]))
    left.add("/data/a.tif", 0.9, np.ones((256, 256), np.float32))
    left.finish()
    (mask,) = tmp_path.rglob("*_mask.png")
    assert cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE).min() == 255
    mask.unlink()
    with pytest.raises(OSError, match="no such mask"):
        read_masks(tmp_path)
