"""`--config`: the options of a TOML file, and each way in which one is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.app import whole_app
from engine.commands.configured import kinds_of
from engine.commands.score import score_command
from engine.config import read_options
from engine.errors import UsageError
from tests.runs import table, tumorscan, write_slices
from tests.tinybundle import make_tiny_bundle

KINDS = kinds_of(score_command)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


def written(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_every_option_of_score_may_stand_in_the_file_but_the_file_itself() -> None:
    assert "config" not in KINDS
    assert KINDS["inputs"] == "texts"
    assert KINDS["no_gate"] == "flag"
    assert KINDS["limit"] == "integer"
    assert KINDS["threshold"] == "number"
    assert KINDS["backend"] == "choice"
    assert KINDS["out"] == KINDS["bundle"] == "path"
    assert KINDS["batch"] == KINDS["max_runtime"] == "text"


def test_keys_are_names_of_options_with_dashes_or_underscores(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '[score]\ninputs = "slices"\nmax-runtime = "4h"\nmask_threshold = 1\nbatch = 32\nno-gate = true\n',
    )
    assert read_options(path, "score", KINDS) == {
        "inputs": ["slices"],
        "max_runtime": "4h",
        "mask_threshold": 1,
        "batch": 32,
        "no_gate": True,
    }


WRONG = {
    "[score]\nmax-runtim = 1": "max-runtim: `score` has no such option: did you mean max-runtime?",
    "[score]\nzebra = 1": "zebra: `score` has no such option",
    "[score]\nconfig = 'x'": "config: `score` has no such option",
    "[score]\nmax-runtime = 1\nmax_runtime = 2": "max_runtime: is there twice, with - and with _: keep one",
    "[score]\nlimit = '5'": 'limit = "5": give a whole number',
    "[score]\nlimit = true": "limit = true: give a whole number",
    "[score]\nno-gate = 1": "no-gate = 1: give true or false",
    "[score]\nbackend = 1": "backend = 1: give text in quotes",
    "[score]\nout = ['a']": "out = ['a']: give a path in quotes",
    "[score]\ninputs = [1]": "inputs = [1]: give paths",
    "[score]\ncomponents = false": "components = false: give text",
    "out = 'results'": "out is in no table: put it below a line [score]",
    "[scores]\nlimit = 1": "[scores]: there is no such table: did you mean score?",
    "[bench]\nlimit = 1": "[bench]: there is no such table: there is [score]",
    "": "sets nothing",
    "[score]\nlimit = ": "is no TOML",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_with_file_and_key(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_options(path, "score", KINDS)
    assert str(caught.value).startswith(f"--config {path}: ")
    assert WRONG[text] in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml: cannot be read"):
        read_options(tmp_path / "nowhere.toml", "score", KINDS)
    with pytest.raises(UsageError, match="cannot be read"):
        read_options(tmp_path, "score", KINDS)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_options(tmp_path / "bytes.toml", "score", KINDS)


BATCH = "give auto, or 1 to 1,024 slices"


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("inputs = 'data'\nlimit = 0", "", "--config run.toml: limit = 0: "),
        ("inputs = 'data'\nbackend = 'abacus'", "", "--config run.toml: backend = abacus: "),
        ("inputs = 'data'\nbatch = 'few'", "", f"--batch few: {BATCH} (it stands in run.toml)"),
        ("inputs = 'data'\nfiles-from = 'list'", "", "run.toml: files-from and inputs: give one of"),
        ("inputs = 'data'\nbatch = 'few'", "--batch less", f"--batch less: {BATCH}"),
        ("inputs = 'data'", "--files-from nowhere", "--files-from nowhere: no such file"),
        ("files-from = 'nowhere'", "missing", "INPUT 'missing' does not exist: check its spelling"),
    ],
)
def test_values_are_judged_as_if_they_were_typed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str, said: str
) -> None:
    written(folder, f"[score]\n{text}")
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError) as caught:
        whole_app()(["score", *words.split(), "--config", "run.toml"], standalone_mode=False)
    assert said in str(caught.value)
    assert ("it stands in" in str(caught.value)) == ("it stands in" in said)


def test_a_file_and_the_command_line_make_a_run_and_the_command_line_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slices(tmp_path / "data", 3)
    make_tiny_bundle(tmp_path / "bundle")
    written(
        tmp_path,
        '[score]\ninputs = ["data"]\nbundle = "bundle"\nout = "ours"\n'
        "limit = 2\nno-gate = true\nquiet = true\n",
    )
    monkeypatch.chdir(tmp_path)
    status = whole_app()(
        ["score", "--config", "run.toml", "--limit", "1", "--dry-run"], standalone_mode=False
    )
    assert status == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "with run.toml the command is: tumorscan score data --out ours --bundle bundle --limit 1 --no-gate"
    )
    ran = tumorscan("score", "--config", "run.toml", "--limit", "1", cwd=tmp_path)
    assert (ran.status, ran.out, ran.err) == (0, "", "")
    assert len(table(tmp_path / "ours")) == 1
    report = json.loads((tmp_path / "ours" / "run.json").read_text())
    assert report["arguments"] == ["score", "--config", "run.toml", "--limit", "1"]
    assert report["options"] == ["--out", "ours", "--bundle", "bundle", "--limit", "1", "--no-gate"]
