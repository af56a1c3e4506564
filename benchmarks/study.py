"""The recipe's study on one fold: one change at a time, trained, scored and judged; then the table.

    python -m benchmarks.study --data kaggle_3m --runs DIR [--weights WEIGHTS.npz] [--only NAME ...]

Each change is trained on the same split with the same seed for about as many steps, exported beside one and
the same classifier, scored with its gate and without on the test part alone, and compared with `best` patient
by patient. The article's recipe is trained twice: by patient, and on a split by slice, which leaks, beside a
classifier of that split. What is there already is not done again: the same command goes on after a kill.
docs/model-quality.md has the results.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.arguments import absolute, run, say
from trainer.dataset import Split, load_frame

BASELINE: Final = "best"
FOLDS: Final = ("--folds", "5", "--fold", "1")


@dataclass(frozen=True, slots=True)
class Change:
    """What `train segmenter` is told in addition.

    `passes` is its epochs over the baseline's, where an epoch has fewer or more steps; with `own_split` the
    baseline's split is not taken.
    """

    words: tuple[str, ...] = ()
    passes: float = 1.0
    own_split: bool = False


CHANGES: Final[dict[str, Change]] = {
    BASELINE: Change(FOLDS, own_split=True),
    "focal-tversky": Change(("--loss", "focal-tversky")),
    "no-augmentation": Change(("--augmentation", "none")),
    "light-augmentation": Change(("--augmentation", "light")),
    "no-channel-drop": Change(("--set", "augmentation.drop_channel=0")),
    "no-averaging": Change(("--set", "ema=0")),
    "tumour-slices": Change(("--slices", "tumour"), passes=1.5),
    "all-slices": Change(("--slices", "all"), passes=0.5),
    "article": Change(("--preset", "article"), passes=1.5),
    "article-by-slice": Change(
        ("--preset", "article", "--validation-fraction", "0.15", "--test-fraction", "0.2"),
        passes=1.5,
        own_split=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Study:
    """Where everything is and how long trainings are, in epochs."""

    data: Path
    runs: Path
    epochs: int
    classifier_epochs: int
    weights: str
    limit: int

    def train(self, name: str, change: Change) -> Path:
        """The finished run of a segmenter."""
        split = () if change.own_split else ("--split", self.runs / BASELINE / "seg" / "split.json")
        epochs = max(1, round(self.epochs * change.passes))
        return self._trained(
            "segmenter", self.runs / name / "seg", *change.words, *split, "--epochs", str(epochs)
        )

    def train_classifier(self, name: str, change: Change) -> Path:
        """That of all cascades here, as what changes is the segmenter; a split of its own has its own."""
        of = self.runs / name if change.own_split and name != BASELINE else self.runs
        split = self.runs / (name if change.own_split else BASELINE) / "seg" / "split.json"
        words = ["--split", split, "--epochs", str(self.classifier_epochs), "--weights", self.weights]
        frozen = [] if self.weights == "none" else ["--freeze", "conv1,conv2"]
        return self._trained("classifier", of / "classifier", *words, *frozen)

    def judge(self, name: str, classifier: Path) -> str:
        """A row of `tumorscan compare`: scored as a user does, with the gate and without, and judged."""
        folder = self.runs / name
        segmenter, judged, listed = folder / "seg", folder / "judged", folder / "test.txt"
        split = segmenter / "split.json"
        if not (judged / "evaluation.json").exists():
            if not (folder / "bundle" / "bundle.json").exists():
                models = ("--classifier", classifier, "--segmenter", segmenter)
                tumorscan("export", self.data, *models, "--out", folder / "bundle")
            listed.write_text("".join(f"{path}\n" for path in slices_to_judge(self.data, split)))
            for out, words in (("gated", ()), ("ungated", ("--no-gate",))):
                to = ("--bundle", folder / "bundle", "--out", folder / out, "--quiet")
                tumorscan("score", "--files-from", listed, *to, *words)
            of = ("--ungated", folder / "ungated", "--split", split)
            tumorscan("evaluate", folder / "gated", self.data, *of, "--out", judged)
        return f"{name}={judged},{segmenter}"

    def _trained(self, kind: str, run: Path, *words: str | Path) -> Path:
        if not (run / "metrics.json").exists():
            run.parent.mkdir(parents=True, exist_ok=True)
            tumorscan("train", kind, self.data, "--run", run, "--limit", str(self.limit), *words)
        return run


def main() -> None:
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=first)
    parser.add_argument(
        "--data", type=absolute, required=True, help="a tree of slices and masks, as for train"
    )
    parser.add_argument("--runs", type=absolute, required=True, help="where runs are kept; goes on with them")
    parser.add_argument("--epochs", type=int, default=6, help="of the baseline's segmenter (else 6)")
    parser.add_argument("--classifier-epochs", type=int, default=2, help="(else 2)")
    parser.add_argument("--weights", default="none", help="of the classifier, as for train (else none)")
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="NAME")
    parser.add_argument("--limit", type=int, default=0, help="slices of a part, for a quick look (else all)")
    parsed = parser.parse_args()
    study = Study(
        parsed.data, parsed.runs, parsed.epochs, parsed.classifier_epochs, parsed.weights, parsed.limit
    )
    rows = []
    for name in dict.fromkeys((BASELINE, *parsed.only)):
        say(name)
        study.train(name, CHANGES[name])
        rows.append(study.judge(name, study.train_classifier(name, CHANGES[name])))
    tumorscan("compare", *rows)


def slices_to_judge(data: Path, split: Path) -> list[str]:
    """The slices of a split's test part. UsageError where there is none of them."""
    return list(Split.load(split).select(load_frame(data), "test", allow_unknown=True)["image_path"])


def tumorscan(*words: str | Path) -> None:
    """Run the command; its failure ends the study, which goes on from there when it is called again."""
    subprocess.run([sys.executable, "-m", "engine.cli", *map(str, words)], check=True)


if __name__ == "__main__":
    run(main)
