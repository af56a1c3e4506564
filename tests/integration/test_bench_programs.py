"""Each benchmark as a dry run on a bundle that scores in a millisecond: it ends and leaves a result."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.results import Name, Result
from tests.runs import environment, write_slices
from tests.tinybundle import make_tiny_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    make_tiny_bundle(folder / "bundle")
    write_slices(folder / "data", 60)
    (folder / "scratch").mkdir()
    return folder


def program(folder: Path, name: Name, *words: str | Path) -> subprocess.CompletedProcess[str]:
    shared = ["--quick", "--data", "data", "--bundle", "bundle", "--scratch", "scratch"]
    shared += ["--results", "results"]
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *shared, *map(str, words)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def dry_run(folder: Path, name: Name, *words: str | Path) -> Result:
    done = program(folder, name, *words)
    assert done.returncode == 0, done.stderr
    assert list((folder / "scratch").iterdir()) == []
    result = results.read(name, folder / "results")
    assert result is not None
    assert result.quick
    assert str(folder) not in result.model_dump_json()
    return result


@pytest.mark.slow
def test_a_cluster_costs_a_share_of_the_rate(folder: Path) -> None:
    if find_spec("ray") is None:
        pytest.skip("ray comes with the extra cluster")
    result = dry_run(folder, "cluster", "--backend", "onnxruntime")
    assert result.median("rate", on="this machine")
    assert result.median("of the rate alone", on="a Ray cluster of it")


def test_throughput_gives_three_rates_and_the_bound(folder: Path) -> None:
    result = dry_run(folder, "throughput", "--precision", "fp32")
    for rate in ("bound", "runner only", "from RAM", "disk to disk", "disk to disk, cold"):
        found = result.median("rate", precision="fp32", rate=rate)
        assert found is not None
        assert found > 0
    assert result.median("of runner only", rate="runner only") == 1
    assert result.median("cached before", rate="disk to disk") == 1
    assert result.notes == ()
    assert result.rows_of(stage="call the models")


def test_requests_are_shared_in_five_ways(folder: Path) -> None:
    result = dry_run(folder, "requests", "--precision", "fp32")
    assert result.notes == ()
    for way in ("one pool", "two queues", *(f"one pool, {n} slices a request" for n in (2, 4, 8))):
        assert result.median("rate", precision="fp32", way=way)
    assert result.median("of the pool", way="one pool") == 1


def test_throughput_on_onnx_runtime_has_no_bound_of_openvino(folder: Path) -> None:
    result = dry_run(
        folder, "throughput", "--backend", "onnxruntime", "--precision", "fp32", "--warm-only", "--batch", "8"
    )
    assert result.rows_of(rate="bound") == []
    assert result.rows_of(rate="disk to disk, cold") == []
    assert result.settings["batch"] == 8


def test_host_gives_each_part_and_the_pipeline_by_cores(folder: Path) -> None:
    result = dry_run(folder, "host", "--cores", "1")
    parts = {row.of["part"] for row in result.rows_of(what="part")}
    assert {"read", "decode", "masks and rows", "commit rows", "write results.csv"} <= parts
    assert (result.median("rate", what="pipeline", cores="1") or 0) > 0
    assert {row.of["stage"] for row in result.rows_of(what="pipeline by stage")} >= {"decode", "commit rows"}


def test_scaling_runs_resumes_and_finds_nothing_left(folder: Path) -> None:
    result = dry_run(folder, "scaling")
    for layout in ("folders", "one flat folder"):
        for name in ("steady rate", "peak memory", "first result", "resume: first new result", "results.csv"):
            found = result.median(name, layout=layout)
            assert found is not None
            assert found > 0


def test_a_peer_is_checked_and_timed_and_one_that_is_not_installed_is_named(folder: Path) -> None:
    result = dry_run(
        folder, "peers", "--precision", "fp32", "--only", "onnxruntime_loop", "--only", "monai_inferer"
    )
    programs = [row.of["title"] for row in result.rows]
    assert programs == ["tumorscan", "tumorscan, onnxruntime", "ONNX Runtime's defaults, plain loop"]
    assert any("MONAI" in note and "not installed" in note for note in result.notes)
    assert (result.median("times ONNX Runtime's defaults, plain loop (fp32)", program="tumorscan") or 0) > 0


def test_an_interpreter_that_is_not_there_is_refused_in_one_line(folder: Path) -> None:
    done = program(folder, "peers", "--only", "ray_data", "--python-ray", "/nowhere/python")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "--python-ray /nowhere/python: no Python that runs" in done.stderr
