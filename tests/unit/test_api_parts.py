"""The names and the refusals of `from engine import score`; arrays as files; options as words."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import engine
from engine import score
from engine.commands.score import score_command
from engine.errors import UsageError
from engine.flips import Flips
from engine.notebook.arrays import as_files
from engine.outputs.components import Rule
from engine.run import Options
from engine.sources.read import decode_slice
from engine.watch.busy import Busy
from engine.words import words_of
from tests.runs import environment
from tests.tinybundle import tiny_slice, tiny_slices

# Options of the command that are about its screen.
OF_THE_COMMAND = {"config", "dry_run", "quiet", "log_format", "metrics", "inputs"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with an empty data/; what is temporary lies in temporary/."""
    (tmp_path / "data").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def decoded(path: bytes) -> npt.NDArray[np.uint8]:
    out = np.empty((256, 256, 3), np.uint8)
    decode_slice(Path(path.decode()).read_bytes(), out)
    return out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to score"),
        ({"inputs": ["nowhere"]}, "does not exist"),
        ({"inputs": ["data"], "backend": "gpu"}, "backend='gpu': choose from auto, tensorrt"),
        ({"inputs": ["data"], "batch": 0}, "batch=0"),
        ({"inputs": ["data"], "overlays": True}, "add out=FOLDER"),
        ({"inputs": ["data"], "ray": "auto"}, "all its nodes share"),
        ({"inputs": ["data"], "out": "data/out"}, "inside"),
        ({"inputs": ["data"], "images": tiny_slices(1)}, "both images and files"),
        ({"images": tiny_slices(1), "out": "out"}, "leave out="),
        ({"images": tiny_slice(0, lesion=True)}, "single slice as"),
        ({"images": tiny_slices(1), "components": "few"}, "--components few"),
    ],
)
def test_wrong_use_is_told_by_the_call(folder: Path, options: dict[str, Any], said: str) -> None:
    inputs = options.pop("inputs", [])
    with pytest.raises(UsageError, match=said):
        score(*inputs, **options)
    assert list((folder / "temporary").iterdir()) == []


def test_options_have_the_names_of_the_commands() -> None:
    command = set(inspect.signature(score_command).parameters) - OF_THE_COMMAND
    ours = set(inspect.signature(score).parameters) - {"inputs", "images"}
    assert ours == command


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, engine\n"
        "print(sorted({'numpy', 'cv2', 'pydantic', 'engine.notebook.api'} & set(sys.modules)))\n"
        "print(engine.score.__module__, engine.Run.__name__, engine.Result.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\nengine.notebook.api Run Result\n"
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        _ = engine.scores  # type: ignore[attr-defined]


@pytest.mark.parametrize("lazy", [False, True])
def test_colours_and_grey_are_stored_as_they_are(tmp_path: Path, lazy: bool) -> None:
    images = tiny_slices(2)
    stored = list(as_files(iter(images) if lazy else images, tmp_path))
    assert [Path(path.decode()).name for path in stored] == ["0.tiff", "1.tiff"]
    assert all(np.array_equal(decoded(path), image) for path, image in zip(stored, images, strict=True))
    (grey,) = as_files(images[:1, :, :, 1], tmp_path)
    assert np.array_equal(decoded(grey), np.repeat(images[0, :, :, 1:2], 3, axis=2))


def test_an_image_is_written_when_its_turn_comes(tmp_path: Path) -> None:
    files = as_files(tiny_slices(3), tmp_path)
    assert list(tmp_path.iterdir()) == []
    next(files)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_stack_has_one_window_and_single_images_their_own(tmp_path: Path) -> None:
    image = tiny_slice(0, lesion=True)[:, :, 1].astype(np.uint16) * 16
    bright, dark = (decoded(path) for path in list(as_files(np.stack([image, image // 4]), tmp_path)))
    assert bright.max() == 255
    assert 0 < dark.max() < 100
    bright, dark = (decoded(path) for path in list(as_files([image, image // 4], tmp_path)))
    assert (bright.max(), dark.max()) == (255, 255)
    (zeros,) = as_files(np.zeros((1, 8, 9), np.float32), tmp_path)
    assert decoded(zeros).max() == 0


@pytest.mark.parametrize("image", [np.zeros((4, 4, 2)), np.zeros(4), np.zeros((0, 4)), np.full((4, 4), 1j)])
def test_what_is_no_image_is_named(tmp_path: Path, image: npt.NDArray[Any]) -> None:
    with pytest.raises(UsageError, match=r"images\[1\] is "):
        list(as_files([tiny_slice(0, lesion=True), image], tmp_path))


def test_options_are_told_as_they_would_be_typed() -> None:
    options = Options(
        ("data",),
        Path("out"),
        threshold=0.4,
        gate=False,
        flips=Flips("all", True),
        components=Rule.parse("largest"),
        fresh=True,
        arguments=("score",),
    )
    assert words_of(options) == [
        *("--out", "out", "--threshold", "0.4", "--no-gate", "--flips", "all", "--flip-classifier"),
        *("--components", "largest", "--fresh"),
    ]
    assert words_of(Options(("data",), Path("out"))) == ["--out", "out"]


def test_shares_are_of_all_hands_of_a_stage() -> None:
    busy = Busy({"decode": 2, "write": 1, "score": 1})
    busy.seconds.update(decode=5.0, write=12.0)
    assert busy.shares(10.0) == {"decode": 0.25, "write": 1.0, "score": 0.0}
    assert busy.shares(0.0) == {"decode": 0.0, "write": 0.0, "score": 0.0}
    with busy.at("score"):
        pass
    assert 0 < busy.seconds["score"] < 5
