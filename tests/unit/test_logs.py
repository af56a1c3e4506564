"""`--log-format json`: every line an object, whatever happens."""

from __future__ import annotations

import io
import json
import signal
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UsageError
from engine.ledger import SliceRow
from engine.outputs.pseudonyms import Pseudonyms
from engine.pipeline import Totals
from engine.run import Options
from engine.watch import logs as module
from engine.watch.expected import Expected
from engine.watch.logs import JsonLog
from tests.runs import command, environment, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle

ROW = SliceRow(
    b"o", 2, "v", "data/jane.png", "quarantined", 0, 0, stage="decode", code="truncated", message="jane's"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_slices(tmp_path / "data", 4)
    make_tiny_bundle(tmp_path / "bundle")
    return tmp_path


def events(text: str) -> list[dict[str, Any]]:
    """The lines, each of which must be one."""
    found = [json.loads(line) for line in text.splitlines()]
    for each in found:
        moment = datetime.fromisoformat(each["time"])
        assert each["time"].endswith("Z")
        assert moment.utcoffset() == timedelta(0)
        assert each["level"] in ("info", "warning", "error")
    return found


def score(folder: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
    line = ("score", "data", "--bundle", "bundle", "--out", "out", "--log-format", "json", *words)
    ran = tumorscan(*line, cwd=folder)
    assert ran.out == ""
    return ran.status, events(ran.err)


def test_a_run_begins_and_ends_in_json(folder: Path) -> None:
    (folder / "data" / "bad.png").write_bytes(b"no image")
    status, (begin, quarantine, end) = score(folder)
    assert status == 4
    assert (begin["event"], begin["bundle"], begin["continued"]) == ("begin", "tiny", False)
    assert (quarantine["level"], quarantine["event"]) == ("warning", "quarantine")
    assert (quarantine["image_path"], quarantine["slice"]) == ("data/bad.png", 0)
    assert (quarantine["stage"], quarantine["code"]) == ("decode", "not_an_image")
    assert (end["event"], end["finished"], end["exit_status"]) == ("end", True, 4)
    assert (end["slices"], end["ok"], end["quarantined"], end["has_mask"]) == (5, 4, 1, 3)
    assert end["slices_per_second"] > 0
    status, (end,) = score(folder)
    assert (status, end["nothing_new"], end["slices"], end["call_slices"]) == (4, True, 5, 0)
    status, (error,) = score(folder, "--threshold", "0.9", "--quiet")
    assert (status, error["level"], error["event"], error["exit_status"]) == (2, "error", "error", 2)
    assert "threshold" in error["message"]


@pytest.mark.parametrize("words", [["--nope", "--log-format", "json"], ["--log-format=json", "--limit", "0"]])
def test_wrong_use_is_json_too(folder: Path, words: list[str]) -> None:
    ran = tumorscan("score", "data", *words, cwd=folder)
    (error,) = events(ran.err)
    assert (ran.status, error["event"], error["exit_status"]) == (2, "error", 2)


def test_a_run_that_is_stopped_says_by_what(folder: Path) -> None:
    write_slices(folder / "data", 60, first=4)
    line = command(
        "score", "data", "--bundle", "bundle", "--out", "out", "--log-format", "json", "--batch", "1"
    )
    with subprocess.Popen(line, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        first = running.stderr.readline()  # before the models are loaded
        running.send_signal(signal.SIGTERM)
        rest = running.stderr.read()
    assert running.returncode == 143
    told = {each["event"]: each for each in events(first + rest)}
    assert next(iter(told)) == "begin"
    assert list(told)[-1] == "end"
    assert told["stop"]["reason"] == "SIGTERM"
    assert (told["end"]["finished"], told["end"]["exit_status"]) == (False, 143)


def log(options: Options, stream: io.StringIO) -> JsonLog:
    return JsonLog(options, stream, Expected(options), lambda: None, quiet=False)


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    told = log(Options(inputs=("data",), out=Path("out")), stream)
    told.goes_on(Totals(ok=3, quarantined=1))
    assert stream.getvalue() == ""
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.0)
    told.goes_on(Totals(ok=3, quarantined=1))
    (progress,) = events(stream.getvalue())
    assert (progress["event"], progress["slices"], progress["call_quarantined"]) == ("progress", 4, 1)
    assert (progress["slices_expected"], progress["seconds_left"]) == (None, None)


def test_steps_are_told_once_and_notices_each_time() -> None:
    stream = io.StringIO()
    told = log(Options(inputs=("data",), out=Path("out")), stream)
    told.prepares("building the classifier: phase 1", 0.1)
    told.prepares("building the classifier: phase 2", 0.2)
    told.says("GPU 1 is lost\nand gone")
    step, notice = events(stream.getvalue())
    assert (step["event"], step["step"]) == ("prepare", "building the classifier")
    assert (notice["event"], notice["message"]) == ("notice", "GPU 1 is lost\nand gone")


def test_names_are_withheld_with_anonymise(tmp_path: Path) -> None:
    stream = io.StringIO()
    options = Options(inputs=("data",), out=Path("out"), anonymise=tmp_path / "key")
    log(options, stream).commits([ROW])
    (line,) = events(stream.getvalue())
    assert "jane" not in stream.getvalue()
    assert line["image_path"] == Pseudonyms.open(tmp_path / "key").of_path("data/jane.png")


def test_a_file_may_ask_for_json(folder: Path) -> None:
    (folder / "run.toml").write_text('[score]\nlog-format = "json"\ninputs = ["data"]\nbundle = "nowhere"\n')
    ran = tumorscan("score", "--config", "run.toml", cwd=folder)
    (error,) = events(ran.err)
    assert ran.status == UsageError.exit_status
    assert error["message"] == "--bundle nowhere: no such folder (it stands in run.toml)"
