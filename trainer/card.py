"""MODEL_CARD.md, written from the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from engine.bundle import Operating, Training
from trainer.calibration import LEAST_GAIN, Temperature
from trainer.failures import failure_groups
from trainer.measure import Measures
from trainer.presets import share_of_negatives
from trainer.study import CrossValidated
from trainer.tables import markdown_failures, markdown_table, markdown_trade_off


@dataclass(frozen=True, slots=True)
class Settings:
    """What validation patients chose; a temperature and a table of gates only where they were asked."""

    operating: Operating
    calibration: Temperature | None = None
    gates: pd.DataFrame | None = None

    @property
    def temperature(self) -> float:
        """What the classifier's logits are divided by."""
        return 1.0 if self.calibration is None else self.calibration.value


@dataclass(frozen=True, slots=True)
class Card:
    """What a card tells. `found` is of the test part, `crossed` of the recipe; None where not measured."""

    name: str
    training: Training
    settings: Settings
    found: Measures | None
    crossed: CrossValidated | None


def write_card(path: Path, card: Card) -> None:
    """Write the card; a number that was not measured is said to be missing."""
    sections = (
        (f"# Model card: {card.name}", _INTRODUCTION),
        ("## Intended use", _USE),
        ("## Not intended for", _MISUSE),
        ("## Input", _INPUT),
        ("## Training data", _data(card.training)),
        ("## Licence", _licence(card.training)),
        ("## Operating point", _operating(card.settings)),
        ("## Calibration", _calibration(card.settings.calibration)),
        *_numbers(card),
        ("## Known failures", _failures(card)),
    )
    path.write_text("\n\n".join(f"{title}\n\n" + "\n".join(lines) for title, lines in sections) + "\n")


_INTRODUCTION = [
    "Two models that work as a cascade: a ResNet50 classifier gives each brain-MRI slice a tumour",
    "probability, and a ResUNet segmenter draws the mask of those slices that pass the gate.",
]
_USE = [
    "Research and benchmarking: ranking and outlining in bulk slices like those of the training data, by",
    "people who can judge the masks.",
]
_MISUSE = [
    "**Not a medical device.** Not for diagnosis, screening, treatment, or any decision about a person; no",
    "authority has reviewed it. Not for other kinds of tumour, other organs, children, scans after surgery",
    "or other sequences: none of these was measured. A slice without a mask is not a healthy slice.",
]
_INPUT = [
    "RGB slices of 256x256 with the channels of the training data (for LGG and phantoms: pre-contrast,",
    "FLAIR, post-contrast, a missing sequence replaced by FLAIR), in 0..255. Other sizes are scaled with",
    "their aspect kept. The normalisation is in the graphs.",
]


def _data(training: Training) -> list[str]:
    extra = training.__pydantic_extra__
    parts, phantoms = extra["parts"], extra["extra"]
    assert isinstance(parts, dict)
    assert isinstance(phantoms, list)
    tested = f"{parts['test']} for the test numbers below" if parts["test"] else "none kept back for a test"
    lines = [
        f"{training.data}: {parts['train']} {extra['split']}s trained on, {parts['validation']} for choosing",
        f"epoch, temperature and operating point, {tested} (split.json).",
    ]
    if extra["split"] == "patient":
        lines.append("No patient is in two parts.")
    else:
        lines += [
            "Slices were split at random, as the article does: neighbours of one patient stand in several",
            "parts, so the numbers below are far better than the models.",
        ]
    lines.append(
        "The classifier was trained from scratch."
        if extra["classifier_weights"] == "none"
        else f"The classifier started from the ImageNet weights of {extra['classifier_weights']}."
    )
    lines.append(f"The segmenter was trained on {_slices(str(extra['segmenter_slices']))}.")
    if phantoms:
        lines.append(f"Drawn phantoms ({', '.join(map(str, phantoms))}) joined the training part only.")
    return lines


def _slices(asked: str) -> str:
    share = share_of_negatives(asked)
    if share in (0, 1):
        return "the tumour slices alone" if share == 0 else "all slices"
    return f"all tumour slices and {share:g} of the others, drawn anew each epoch"


def _licence(training: Training) -> list[str]:
    terms = str(training.__pydantic_extra__["data_terms"])
    lines = [
        f"Terms of the training data: {terms}.",
        "The weights were learnt from that data; this project takes them to be bound by its terms, as the",
        "careful reading of a question that no court has settled.",
    ]
    if "non-commercial" in terms.lower() or "-nc" in terms.lower():
        lines += [
            "So: no commercial use of the weights or of models made from them; name the data's authors; pass",
            "on what you derive under the same terms. For commercial use train on data whose terms allow it.",
        ]
    return [*lines, "The code that made and runs them is Apache-2.0."]


def _operating(settings: Settings) -> list[str]:
    point = settings.operating
    lines = [
        f"Gate {point.gate_threshold:g}, mask threshold {point.mask_threshold:g}, at least "
        f"{point.min_pixels} pixels at 256x256; chosen {point.chosen}.",
    ]
    if settings.gates is None:
        return lines
    return [
        *lines,
        "",
        "What other gates (`--threshold`) would have done on the same validation patients:",
        "",
        *markdown_trade_off(settings.gates),
    ]


def _calibration(found: Temperature | None) -> list[str]:
    if found is None:
        return ["tumor_probability was not calibrated."]
    if found.gain is None:
        return [
            f"tumor_probability was not calibrated: {found.patients} validation patients are too few, or "
            "their slices of one kind.",
        ]
    fitted = (
        f"A temperature of {found.fitted:g}, fitted on {found.slices} slices of {found.patients} validation "
        f"patients, changes the negative log likelihood of patients left out of the fit from "
        f"{found.before:.4f} to {found.after:.4f} nats a slice (95% interval of what is saved: "
        f"{found.gain[0]:.4f} to {found.gain[1]:.4f})"
    )
    if found.value == 1:
        return [f"{fitted}: not surely {LEAST_GAIN} or more, as asked of it, so the graph holds none."]
    return [
        f"{fitted}. The classifier's graph divides its logits by it;",
        "the operating point was chosen after that.",
    ]


def _numbers(card: Card) -> list[tuple[str, list[str]]]:
    sections = []
    if card.crossed is not None:
        sections.append(("## Cross-validated numbers of the recipe", _crossed(card.crossed)))
    if card.found is not None:
        joined = f"{len(card.found.slices)} slices of {len(card.found.volumes)} test patients; {_INTERVALS}"
        lines = [*markdown_table(card.found), "", joined]
        sections.append(("## Numbers on the test patients", lines))
    return sections or [("## Numbers", ["Not measured: no patient was kept back, and no folds were given."])]


_INTERVALS = (
    "intervals by resampling patients. An empty mask of an empty truth counts as Dice 1; "
    "docs/model-quality.md says what each number means."
)


def _crossed(crossed: CrossValidated) -> list[str]:
    whole = (
        "every patient judged once"
        if crossed.patients == crossed.of_patients
        else f"{crossed.patients} of {crossed.of_patients} patients judged: not all folds were trained"
    )
    return [
        f"{len(crossed.folds)} models of this recipe, each judged on a fold of patients that it never saw;",
        f"{whole}; {crossed.slices} slices, scored with --flips {crossed.flips}. The weights here are of",
        "another training: the numbers are the recipe's, not a test of these very weights.",
        "",
        *crossed.markdown,
        "",
        f"{_INTERVALS[0].upper()}{_INTERVALS[1:]}",
    ]


def _failures(card: Card) -> list[str]:
    lines = [
        "Few patients of one collection judged it, so the intervals are wide. Slices of other sequences,",
        "scanners or kinds of tumour than the training data's were not seen.",
    ]
    if card.crossed is not None:
        lines += ["", "Cross-validated:", "", *card.crossed.failures]
    if card.found is not None:
        groups = failure_groups(card.found.slices, card.found.seed, card.found.resamples)
        lines += ["", "On the test patients:", "", *markdown_failures(card.found.volumes, groups)]
    return lines
