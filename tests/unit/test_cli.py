"""The command: one line and exit status 2 for wrong use, before anything heavy; 1 and a log for our bugs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import __version__
from engine.commands.score import _seconds
from engine.errors import UsageError
from tests.runs import command, environment, tumorscan

# (pydantic is not among them: typer itself imports it)
HEAVY = {"numpy", "cv2", "pandas", "openvino", "onnxruntime", "onnx", "tensorflow", "keras"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "below").mkdir(parents=True)
    (tmp_path / "list.txt").write_text("data\n")
    return tmp_path


WRONG = {
    "nothing to score": ["score"],
    "INPUT 'nowhere' does not exist": ["score", "nowhere"],
    "the output": ["score", "data", "--out", "data/below"],
    "lies inside the output": ["score", "data/below", "--out", "data"],
    "given twice": ["score", "data", "data/"],
    "both INPUT and --files-from": ["score", "data", "--files-from", "list.txt"],
    "--files-from no.txt: no such file": ["score", "--files-from", "no.txt"],
    "--bundle nowhere: no such folder": ["score", "data", "--bundle", "nowhere"],
    "--max-runtime soon: give seconds": ["score", "data", "--max-runtime", "soon"],
    "No such option: --nope": ["score", "data", "--nope"],
    "No such command": ["store", "data"],
    "'--limit'": ["score", "data", "--limit", "0"],
    "'--backend'": ["score", "data", "--backend", "abacus"],
    "'--threshold'": ["score", "data", "--threshold", "1.5"],
    "'--mask-threshold'": ["score", "data", "--mask-threshold", "-1"],
}


@pytest.mark.parametrize("said", WRONG)
def test_wrong_use_is_one_plain_line_before_anything_heavy_is_imported(folder: Path, said: str) -> None:
    line = command(*WRONG[said])
    done = subprocess.run(
        [line[0], "-X", "importtime", *line[1:]],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, lines
    assert lines[0].startswith("tumorscan: ")
    assert said in lines[0]
    assert "engine" in imported
    assert not imported & HEAVY
    assert done.stdout == ""
    assert sorted(path.name for path in folder.iterdir()) == ["data", "list.txt"]


def test_the_command_alone_prints_its_help(tmp_path: Path) -> None:
    ran = tumorscan(cwd=tmp_path)
    assert ran.status == 2
    assert "score" in ran.out + ran.err
    assert "tumorscan: " not in ran.err


def test_help_and_version_are_no_errors(tmp_path: Path) -> None:
    ran = tumorscan("score", "--help", cwd=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    for option in ("--files-from", "--max-runtime", "--no-gate", "--retry", "--fresh", "--dry-run"):
        assert option in ran.out
    ran = tumorscan("--version", cwd=tmp_path)
    assert (ran.status, ran.out) == (0, f"tumorscan {__version__}\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("0.5", 0.5), ("45s", 45), ("30m", 1800), ("4h", 14_400), ("2d", 172_800)],
)
def test_times_are_seconds_or_have_a_unit(text: str, seconds: float) -> None:
    assert _seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "1w", "h", "1h30m", "nan", "inf", "1e3"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--max-runtime"):
        _seconds(text)


def run_with_a_bug(folder: Path, error: str, log_folder: Path) -> subprocess.CompletedProcess[str]:
    """Score with a `survey` of our own that fails, as a bug of ours would."""
    program = (
        "import sys, engine.scoring, engine.cli\n"
        f"def survey(options): raise {error}\n"
        "engine.scoring.survey = survey\n"
        "sys.argv = ['tumorscan', 'score', 'data', '--dry-run']\n"
        "engine.cli.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**environment(), "TMPDIR": str(log_folder)},
        capture_output=True,
        text=True,
    )


def test_a_bug_of_ours_is_one_line_and_a_log_with_the_traceback(folder: Path) -> None:
    logs = folder / "logs"
    logs.mkdir()
    done = run_with_a_bug(folder, "ZeroDivisionError('one\\nover none')", logs)
    (log,) = logs.iterdir()
    assert done.returncode == 1
    assert done.stderr == (
        "tumorscan: a fault of tumorscan itself (ZeroDivisionError: one over none); "
        f"the details are in {log}\n"
    )
    written = log.read_text()
    assert f"tumorscan {__version__}\ntumorscan score data --dry-run\n" in written
    assert "in survey\nZeroDivisionError: one\nover none\n" in written


def test_an_error_that_ends_a_run_shows_its_line_and_no_traceback(folder: Path) -> None:
    done = run_with_a_bug(folder, "engine.errors.MachineError('no\\x1fspace')", folder)
    assert (done.returncode, done.stderr) == (3, "tumorscan: no space\n")


def test_ctrl_c_before_anything_began_is_an_interrupt(folder: Path) -> None:
    done = run_with_a_bug(folder, "KeyboardInterrupt", folder)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_names_that_are_no_utf8_are_said_escaped(folder: Path) -> None:
    name = os.fsdecode(b"\xff[red]\xfe")
    ran = tumorscan("score", name, cwd=folder)
    assert ran.status == 2
    assert "xff[red]" in ran.err
