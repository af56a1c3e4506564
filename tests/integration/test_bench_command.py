"""`tumorscan bench` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from engine.bundle import Bundle
from engine.commands import bench
from engine.errors import UsageError
from tests.runs import write_slices
from tests.tinybundle import make_tiny_bundle

SLICES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    make_tiny_bundle(folder / "bundle")
    write_slices(folder / "data", SLICES)
    return folder


def run(*words: str | Path) -> str:
    """What it prints. Raises what it raises."""
    app = typer.Typer()
    bench.register(app)
    app.command(name="other")(lambda: None)  # of one command alone typer makes the app
    result = CliRunner().invoke(app, ["bench", *map(str, words)])
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


def test_it_prints_three_rates_a_precision_and_writes_them(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    words = ("--bundle", folder / "bundle", "--precision", "fp32", "--seconds", "1", "--json", file)
    printed = run(folder / "data", *words).splitlines()
    assert printed[0].split("  ")[0] == "precision"
    assert printed[1].startswith("fp32 ")
    assert printed[1].count("(") == 2
    assert f"{SLICES} slices (2 MB), 67% of them segmented, on openvino" in printed[2]
    assert "rough: of 12 slices" in printed[3]
    facts = json.loads(file.read_text())
    assert facts["bundle"]["sha256"] == Bundle.load(folder / "bundle").sha256
    assert facts["gpus"] is None
    assert facts["slices"] == SLICES
    (rates,) = facts["rates"]
    assert rates["precision"] == {"classifier": "fp32", "segmenter": "fp32"}
    for name in ("runner_only", "from_ram", "disk_to_disk"):
        assert rates[name]["slices"] == SLICES
        assert rates[name]["passed"] == 8
        assert rates[name]["slices_per_second"] > 0
    assert rates["runner_only"]["of_runner_only"] == 1
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "data"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing-here",), "does not exist"),
        (("data", "--bundle", "nothing-here"), "no such folder"),
        (("data", "--scratch", "nothing-here"), "no such folder"),
        (("data", "--json", "nothing-here/bench.json"), "give a file in a folder that is there"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_loaded(
    words: tuple[str, ...], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=said):
        run(*words)
