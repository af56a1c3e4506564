"""What a run tells: nothing that a spreadsheet would run, nothing of its user, nothing before it is whole."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ledger import Ledger, SliceRow
from engine.outputs.tables import write_tables
from tests.faults import shim
from tests.faults.scene import FINISHED
from tests.runs import command, environment, table, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle")).folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def words(bundle: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("score", *more, "--bundle", bundle, "--backend", "onnxruntime")


# Tables


def test_no_cell_of_the_tables_is_a_formula(work: Path, bundle: Path) -> None:
    slice_ = write_slices(work / "data", 1)[0].read_bytes()
    names = ["=cmd|' '!A0", "+1+1", "-2+3", "@SUM(1)", "\tx", "\rx", "\nx", "\uff1d1", 'q",=1+1', "a;=1+1"]
    for name in names:
        (work / name).mkdir()
        (work / name / f"{name}.tif").write_bytes(slice_)
        (work / name / f"{name}.png").write_bytes(b"")
    (work / "list").write_bytes(b"\0".join(os.fsencode(name) for name in names) + b"\0=gone.tif\0")
    ran = tumorscan(*words(bundle, "--files-from", "list"), cwd=work)
    assert ran.status == FINISHED, ran.err
    for name, rows in (("results.csv", 2 * len(names) + 1), ("errors.csv", len(names) + 1)):
        with (work / "results" / name).open(newline="") as file:
            cells = list(csv.reader(file))
        assert len(cells) == rows + 1
        assert [cell for row in cells for cell in row if cell.startswith(FORMULA)] == []
    for path in table(work / "results")["image_path"]:
        assert Path(path).exists() or path == "./=gone.tif"


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(texts=st.tuples(text, text, text, text, st.sampled_from(FORMULA)))
def test_no_text_makes_a_cell_a_formula(
    tmp_path_factory: pytest.TempPathFactory, texts: tuple[str, str, str, str, str]
) -> None:
    *told, first = texts
    folder = tmp_path_factory.mktemp("table")
    rows = [
        SliceRow(b"a", 0, first + told[0], first + told[1], "ok", 1, 1, 0.5, 1, first + told[2]),
        SliceRow(
            b"b", 0, told[0], told[1], "quarantined", 1, 1, stage="read", code="io", message=first + told[3]
        ),
        SliceRow(b"c", 0, told[2], told[3], "quarantined", 1, 1, stage="read", code="io", message=told[3]),
    ]
    with Ledger.open(folder / "run.sqlite", {}, fresh=False) as ledger:
        ledger.commit(rows)
        write_tables(ledger.rows(), folder)
    for name, count in (("results.csv", 4), ("errors.csv", 3)):
        with (folder / name).open(newline="", encoding="utf-8") as file:
            cells = list(csv.reader(file))
        assert len(cells) == count
        assert [cell for row in cells for cell in row if cell.startswith(FORMULA)] == []


# Nothing leaks


def test_the_output_tells_nothing_of_the_environment(
    work: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "API_TOKEN": "tok-5f0c29d1",
        "HOME": str(work / "home-of-jane"),
        "USER": "jane-doe-17",
        "LOGNAME": "jane-doe-17",
        "DATABASE_URL": "postgres://jane:pw-88123@db/records",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    write_slices(work / "data", 2)
    (work / "data" / "p0" / "bad.tif").write_bytes(b"")
    (work / "models").symlink_to(bundle)
    assert tumorscan(*words(Path("models"), "data"), cwd=work).status == FINISHED
    told = [*secrets.values(), "home-of-jane", "pw-88123", socket.gethostname(), str(work)]
    for path in (work / "results").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert [secret for secret in told if len(secret) > 4 and secret.encode() in data] == [], path


@pytest.mark.skipif(bool(shim.why_not()), reason=shim.why_not())
def test_unfinished_files_can_be_opened_by_their_owner_only(work: Path, bundle: Path) -> None:
    """Masks are patients' data: even where others may list the folder, half a file is nobody's business."""
    write_slices(work / "data", 3)
    place = work / "meeting"
    env = shim.calls("rename", "_mask.png", do=f"meet {place}", mark=work / "mark")
    line = command(*words(bundle, "data"))
    running = subprocess.Popen(
        line, env={**environment(), **env}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not place.with_suffix(".here").exists():
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    modes = {path.stat().st_mode & 0o777 for path in (work / "results").rglob(".tumorscan-*")}
    place.with_suffix(".go").touch()
    assert running.wait(60) == 0
    assert modes <= {0o600, 0o666 & ~_umask()}
    assert modes


def test_the_log_of_a_fault_is_its_owners(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine import app

    monkeypatch.setenv("TMPDIR", str(work))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(SystemExit):
        app._fail_with_log(RuntimeError("of ours"))
    (log,) = work.glob("tumorscan-*.log")
    assert log.stat().st_mode & 0o777 == 0o600


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before
