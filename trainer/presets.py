"""The two recipes: ours, and the article's to the number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from trainer.augment import Augmentation

Kind = Literal["classifier", "segmenter"]
Slices = Literal["tumour", "all"]


@dataclass(frozen=True, slots=True)
class Preset:
    """One recipe for one model.

    Args:
        split: by patient, or by slice as the article does (which leaks between neighbouring slices).
        fractions: training, validation and test parts.
        slices: what the segmenter sees; the classifier always sees all.
        learning_rate, epsilon: of Adam.
        schedule: "cosine" falls to zero over the epochs after a warm-up epoch; "plateau" divides by five
            when val_loss stands still.
        batch_size, epochs: slices a step; the most passes over the training part.
        patience: epochs without a better val_loss before training stops.
        momentum: of batch normalisation.
        augmentation: or None.
    """

    name: str
    split: Literal["patient", "slice"]
    fractions: tuple[float, float, float]
    slices: Slices
    learning_rate: float
    epsilon: float
    schedule: Literal["cosine", "plateau"]
    batch_size: int
    epochs: int
    patience: int
    momentum: float
    augmentation: Augmentation | None


_ARTICLE = Preset(
    name="article",
    split="slice",
    fractions=(0.85, 0.075, 0.075),
    slices="tumour",
    learning_rate=0.05,
    epsilon=0.1,
    schedule="plateau",
    batch_size=16,
    epochs=60,
    patience=20,
    momentum=0.99,
    augmentation=None,
)

_BEST_CLASSIFIER = Preset(
    name="best",
    split="patient",
    fractions=(0.70, 0.15, 0.15),
    slices="all",
    learning_rate=3e-4,
    epsilon=1e-7,
    schedule="cosine",
    batch_size=16,
    epochs=6,
    patience=20,
    momentum=0.95,
    augmentation=Augmentation(),
)

PRESETS: dict[tuple[str, Kind], Preset] = {
    ("article", "classifier"): _ARTICLE,
    ("article", "segmenter"): _ARTICLE,
    ("best", "classifier"): _BEST_CLASSIFIER,
    ("best", "segmenter"): replace(
        _BEST_CLASSIFIER, slices="tumour", learning_rate=2e-3, epochs=40, momentum=0.97
    ),
}
