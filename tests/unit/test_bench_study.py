"""The recipe's study: what is trained, and which slices are judged."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import study
from benchmarks.study import BASELINE, CHANGES, Study, slices_to_judge
from engine.errors import UsageError
from trainer.dataset import Split

Words = tuple[str, ...]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Words]:
    """What `tumorscan` was called with, in place of the calls; a training leaves what a finished one does."""
    called: list[Words] = []

    def called_with(*words: str | Path) -> None:
        called.append(tuple(map(str, words)))
        if words[0] == "train":
            run = Path(words[words.index("--run") + 1])
            run.mkdir(parents=True)
            (run / "metrics.json").write_text("{}")
            Split("patient", 0, (), (), ("p",)).save(run / "split.json")

    monkeypatch.setattr(study, "tumorscan", called_with)
    return called


def data(folder: Path) -> Path:
    (folder / "data" / "p").mkdir(parents=True)
    for name in ("1.tif", "1_mask.tif", "2.tif", "2_mask.tif"):
        cv2.imwrite(str(folder / "data" / "p" / name), np.zeros((8, 8), np.uint8))
    (folder / "data" / "p" / "notes.txt").touch()
    return folder / "data"


def test_each_change_is_trained_once_on_the_baselines_split_for_as_many_steps(
    tmp_path: Path, commands: list[Words]
) -> None:
    of = Study(data(tmp_path), tmp_path / "runs", 6, 2, "none", 0)
    for _ in range(2):
        for name, change in CHANGES.items():
            of.train(name, change)
            of.judge(name, of.train_classifier(name, change))
            (tmp_path / "runs" / name / "judged").mkdir(exist_ok=True)
            (tmp_path / "runs" / name / "judged" / "evaluation.json").touch()
    trained = [words for words in commands if words[:2] == ("train", "segmenter")]
    assert len(trained) == len(CHANGES)
    classifiers = [words for words in commands if words[:2] == ("train", "classifier")]
    own = [name for name, change in CHANGES.items() if change.own_split]
    assert [words[words.index("--split") + 1] for words in classifiers] == [
        str(tmp_path / "runs" / name / "seg" / "split.json") for name in own
    ]
    for words in (words for words in commands if words[0] == "export"):
        classifier, segmenter = (
            Path(words[words.index(f"--{kind}") + 1]) for kind in ("classifier", "segmenter")
        )
        assert classifier.parent == (
            segmenter.parents[0] if "article-by-slice" in words[-1] else tmp_path / "runs"
        )
    split = ("--split", str(tmp_path / "runs" / BASELINE / "seg" / "split.json"))
    for words, change in zip(trained, CHANGES.values(), strict=True):
        assert (split[1] in words) != change.own_split
        assert words[-1] == str(round(6 * change.passes))
    scored = [words for words in commands if words[0] == "score"]
    assert [("--no-gate" in words) for words in scored] == [False, True] * len(CHANGES)


def test_the_test_part_is_of_patients_or_of_slices(tmp_path: Path) -> None:
    folder = data(tmp_path)
    split = tmp_path / "split.json"
    Split("patient", 0, ("q",), (), ("p",)).save(split)
    assert slices_to_judge(folder, split) == [f"{folder}/p/1.tif", f"{folder}/p/2.tif"]
    Split("slice", 0, ("p/1.tif",), (), ("p/2.tif",)).save(split)
    assert slices_to_judge(folder, split) == [f"{folder}/p/2.tif"]
    Split("patient", 0, ("p",), (), ()).save(split)
    with pytest.raises(UsageError, match="names of part test is in the data"):
        slices_to_judge(folder, split)
