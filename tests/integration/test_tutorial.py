"""docs/tutorial.md, followed word for word; and an input divided among jobs, by the real command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import CHECKOUT, environment, files_below, results, table, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle

TUTORIAL = CHECKOUT / "docs" / "tutorial.md"
# Training and Kaggle's download are not followed here; everything marked <!-- run --> is.
STEPS = re.findall(r"^<!-- run -->\n```sh\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose `tumorscan` is this checkout's."""
    programs = tmp_path_factory.mktemp("bin")
    program = programs / "tumorscan"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m engine.cli "$@"\n')
    program.chmod(0o755)
    return {**environment(), "PATH": f"{programs}:{os.environ['PATH']}"}


def test_the_tutorial_can_be_followed_word_for_word(tmp_path: Path, installed: dict[str, str]) -> None:
    assert len(STEPS) >= 6
    said = ""
    for step in STEPS:
        line = ["bash", "-euc", step]
        done = subprocess.run(line, cwd=tmp_path, env=installed, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"
        said += done.stdout
    assert "data/kaggle_3m: 60 slices of 3 drawn patients, 16 with a lesion" in TUTORIAL.read_text()
    assert "data/kaggle_3m: 60 slices of 3 drawn patients, 16 with a lesion" in said
    assert len(table(tmp_path / "results")) == 60
    assert (tmp_path / "results" / "index.html").stat().st_size > 10_000
    assert (tmp_path / "results" / "evaluation.json").exists()


def test_what_the_jobs_of_an_input_write_is_merged_to_the_whole(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    write_slices(tmp_path / "data", 9, patients=3)
    (tmp_path / "data" / "p1" / "bad.png").write_bytes(b"no image")
    make_tiny_bundle(tmp_path / "bundle")

    def run(*words: str | Path) -> None:
        subprocess.run(list(map(str, words)), cwd=tmp_path, env=installed, check=True, timeout=300)

    for index in ("0", "1"):
        run(CHECKOUT / "jobs" / "shard.sh", index, "2", "shards", "data", "--bundle", "bundle", "--quiet")
    run("bash", "-c", "tumorscan merge shards/* --out merged || [ $? -eq 4 ]")
    whole = tumorscan("score", "data", "--bundle", "bundle", "--out", "whole", "--quiet", cwd=tmp_path)
    assert whole.status == 4
    assert results(tmp_path / "merged") == results(tmp_path / "whole")
    assert files_below(tmp_path / "merged") == files_below(tmp_path / "whole")
