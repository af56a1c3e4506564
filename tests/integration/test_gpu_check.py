"""gpu_check as its users start it, on a double of a GPU: every section is walked and leaves no figure."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.section import Section
from benchmarks.gpu.settings import Settings
from benchmarks.gpu_check import _run
from engine.driver import probe_driver
from engine.errors import MachineError
from tests.runs import environment, write_slices
from tests.tinybundle import make_tiny_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu_check")
    make_tiny_bundle(folder / "bundle")
    write_slices(folder / "data", 20)
    (folder / "scratch").mkdir()
    return folder


def gpu_check(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    shared = ["--data", "data", "--bundle", "bundle", "--scratch", "scratch", "--out", "out"]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", *shared, *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def walked(folder: Path, *sections: str) -> tuple[int, list[str]]:
    """How many quantities a dry run of these sections met, and what it left out."""
    chosen = [word for section in sections for word in ("--only", section)]
    done = gpu_check(folder, "--dry-run", *chosen)
    assert done.returncode == 0, done.stderr
    _, _, last = done.stdout.partition("a dry run on a double of a GPU: ")
    count, _, rest = last.partition(" quantities walked through, nothing measured\n")
    assert list((folder / "scratch").iterdir()) == []
    assert not (folder / "out").exists()
    return int(count), [line for line in rest.splitlines() if line]


def settings_for(folder: Path) -> Settings:
    return Settings(
        data="", links="", bundle="", scratch=str(folder), batch=4, lanes=1, seconds=1.0, repeats=1,
        quick=True, dry=True, workers=1, most=4,
    )  # fmt: skip


def test_a_section_that_crashes_or_hangs_is_named_and_no_more(tmp_path: Path) -> None:
    section = Section(lambda settings, told: None, 0.0, 5)
    crashed = _run("no such section", section, settings_for(tmp_path))
    assert crashed.notes == [
        "no such section: what comes behind it is left out: its process ended with status 1: "
        "KeyError: 'no such section'"
    ]
    hung = _run("chip", replace(section, limit=0.0), settings_for(tmp_path))
    assert hung.notes == ["chip: what comes behind it is left out: it did not end within 0 minutes"]


def test_without_a_gpu_it_ends_with_one_line_and_status_3(folder: Path) -> None:
    try:
        probe_driver()
    except MachineError as error:
        said = str(error)
    else:
        pytest.skip("there is a GPU here")
    done = gpu_check(folder)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"gpu_check: {said}\n")
    assert not (folder / "out").exists()


def test_chip_parity_and_overlap_are_walked_on_the_double_without_a_finding(folder: Path) -> None:
    count, notes = walked(folder, "chip", "parity", "overlap")
    # 5 copies; 5 figures of parity; 2 runtimes, each with two pairs of 4 and two numbers of lanes with 3.
    assert count == 5 + 5 + 2 * (2 * 4 + 2 * 3)
    assert notes == ["chip: float16 matrix products are left out: a double has none"]


def test_runtimes_take_turns_and_one_that_is_absent_is_named(folder: Path) -> None:
    count, notes = walked(folder, "models", "tools")
    assert count == 2 * 3 + 2 * 3
    torch, tensorrt = notes
    assert torch.startswith("models: PyTorch, float16, channels last is left out: ")
    assert tensorrt.startswith("tools: what comes behind it is left out: ")


def test_the_rates_are_walked_from_the_lanes_to_the_rows(folder: Path) -> None:
    count, notes = walked(folder, "rates")
    # 2 runtimes, each with the share that passes, and four rates with their share of runner only.
    assert (count, notes) == (2 * (1 + 4 * 2), [])


def test_lanes_batches_and_workers_are_walked(folder: Path) -> None:
    count, notes = walked(folder, "scaling")
    assert (count, notes) == (2 * 2 + 2 + 2, [])


def test_the_host_alone_is_measured_by_its_own_program(folder: Path) -> None:
    count, notes = walked(folder, "host", "plans")
    assert count > 20
    assert notes == ["plans: plans are left out: a double builds none"]
