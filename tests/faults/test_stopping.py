"""SIGTERM as a container's scheduler sends it: no new slices, what is under way is kept, 143 within 20 s."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults import shim
from tests.faults.kinds.signals import GRACE_S, OUT_OF_TIME, TERMINATED
from tests.faults.scene import Run
from tests.processes import about
from tests.runs import command, environment, files_below, results, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle

pytestmark = pytest.mark.skipif(bool(shim.why_not()), reason=shim.why_not())

SLICES = 240
WORDS = ("--bundle", "bundle", "--backend", "onnxruntime", "--workers", "1", "--batch", "4")
UNDER_WAY = 4 * 20
"""Slices that a run with these words has before it at once, at most: its ring, and what waits for writers."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopping")
    write_slices(folder / "data", SLICES)
    make_tiny_bundle(folder / "bundle")
    assert tumorscan("score", "data", "--out", "whole", *WORDS, cwd=folder).status == 0
    return folder


def start(folder: Path, out: str, *words: str, prefix: tuple[str, ...] = ()) -> Run:
    """The command on a disk that takes 25 ms a file: six seconds for all of them."""
    log = folder / f"{out}.txt"
    env = shim.calls("read", "/data/p", do="sleep 25", count=0, mark=folder / "mark")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*prefix, *command("score", "data", "--out", out, *WORDS, *words)],
            cwd=folder,
            env={**environment(), **env},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Run(process, folder / out, words, log)


def rows(out: Path) -> int:
    with closing(sqlite3.connect(f"file:{out / 'run.sqlite'}?mode=ro", uri=True)) as ledger:
        return int(ledger.execute("SELECT count(*) FROM slices").fetchone()[0])


def expect_continued(folder: Path, out: str) -> None:
    assert tumorscan("score", "data", "--out", out, *WORDS, cwd=folder).status == 0
    assert results(folder / out) == results(folder / "whole")
    assert files_below(folder / out) == files_below(folder / "whole")


def test_sigterm_takes_no_new_slices_and_commits_those_under_way(folder: Path) -> None:
    run = start(folder, "terminated")
    assert run.until(lambda: run.masks() >= 20), run.said
    before, begun = run.masks(), time.monotonic()
    run.signal(signal.SIGTERM)
    assert run.wait() == TERMINATED, run.said
    assert time.monotonic() - begun < GRACE_S
    kept = rows(run.out)
    # Two of three slices have a mask.
    assert run.masks() <= kept <= before * 1.5 + UNDER_WAY
    assert f"{kept} slices are done and the same command continues" in run.said
    expect_continued(folder, "terminated")


def test_max_runtime_does_the_same_by_the_clock(folder: Path) -> None:
    run = start(folder, "requeued", "--max-runtime", "2")
    assert run.wait() == OUT_OF_TIME, run.said
    assert 0 < rows(run.out) < SLICES
    assert "stopped by --max-runtime" in run.said
    expect_continued(folder, "requeued")


def test_the_first_process_of_a_container_stops_in_order_too(folder: Path) -> None:
    """The kernel gives such a process no signal that it does not listen to."""
    contained = ("unshare", "--pid", "--fork", "--kill-child")
    if not shutil.which("unshare") or subprocess.run([*contained, "true"], check=False).returncode:
        pytest.skip("needs the right to make a process namespace")
    run = start(folder, "contained", prefix=contained)
    assert run.until(lambda: run.masks() >= 8), run.said
    children = about(run.process.pid, f"task/{run.process.pid}/children").split()
    subprocess.run(["kill", "-TERM", *map(bytes.decode, children)], check=True)
    assert run.wait() == TERMINATED, run.said
    assert rows(run.out) >= 8
    expect_continued(folder, "contained")
