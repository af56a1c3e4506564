"""The recipes: ours, and the article's to the number; and how one value of a recipe is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from engine.errors import UsageError
from trainer.augment import AUGMENTATIONS, Augmentation

Kind = Literal["classifier", "segmenter"]


@dataclass(frozen=True, slots=True)
class Preset:
    """One recipe for one model.

    Args:
        split: by patient, or by slice as the article does (which leaks between neighbouring slices).
        fractions: training, validation and test parts; with folds the test part is the fold instead.
        slices: what the segmenter is trained and validated on: "tumour", "all", or the tumour slices and a
            share of the others ("0.25"), drawn anew each epoch; the classifier always sees all.
        batch_size, epochs: slices a step; the most passes over the training part.
        learning_rate, epsilon: of Adam; the learning rate is the schedule's highest.
        schedule: "cosine" rises over `warmup` steps, then falls by step to 2% at the last; "plateau" divides
            by five when `monitor` stands still for half of `patience`.
        weight_decay: decoupled, of kernels only (AdamW, Loshchilov and Hutter 2019, arXiv:1711.05101).
        clip_norm: largest norm of all gradients together; 0 is none.
        ema: momentum of the average of weights that is validated and kept; 0 is none.
        bn_batches: batches over which the statistics of batch normalisation are taken anew before each
            validation (Wu and Johnson 2021, arXiv:2105.07576); 0 keeps the moving averages.
        momentum: of batch normalisation.
        loss: of the segmenter: "focal-tversky" is (1-T)^0.75, "tversky+bce" is (1-T) + bce_weight x BCE.
        alpha: weight of a missed pixel in T, against 1-alpha of a false one.
        bce_weight: of the binary cross-entropy in "tversky+bce".
        label_smoothing: of the classifier's cross-entropy.
        freeze: beginnings of the names of layers that are not trained ("conv1", "conv2").
        monitor: the figure of the validation part that chooses the epoch kept: "val_loss", "val_dice"
            (segmenter) or "val_auc" (classifier).
        patience: epochs without a better `monitor` before training stops.
        augmentation: or None.
    """

    name: str
    split: Literal["patient", "slice"]
    fractions: tuple[float, float, float]
    slices: str
    batch_size: int
    epochs: int
    learning_rate: float
    epsilon: float
    schedule: Literal["cosine", "plateau"]
    warmup: int
    weight_decay: float
    clip_norm: float
    ema: float
    bn_batches: int
    momentum: float
    loss: Literal["focal-tversky", "tversky+bce"]
    alpha: float
    bce_weight: float
    label_smoothing: float
    freeze: tuple[str, ...]
    monitor: str
    patience: int
    augmentation: Augmentation | None

    @property
    def highest_is_best(self) -> bool:
        """Whether `monitor` is better when it is higher."""
        return self.monitor != "val_loss"


_ARTICLE = Preset(
    name="article",
    split="slice",
    fractions=(0.85, 0.075, 0.075),
    slices="tumour",
    batch_size=16,
    epochs=60,
    learning_rate=0.05,
    epsilon=0.1,
    schedule="plateau",
    warmup=0,
    weight_decay=0.0,
    clip_norm=0.0,
    ema=0.0,
    bn_batches=0,
    momentum=0.99,
    loss="focal-tversky",
    alpha=0.7,
    bce_weight=1.0,
    label_smoothing=0.0,
    freeze=(),
    monitor="val_loss",
    patience=20,
    augmentation=None,
)

_BEST_CLASSIFIER = Preset(
    name="best",
    split="patient",
    fractions=(0.70, 0.15, 0.15),
    slices="all",
    batch_size=16,
    epochs=6,
    learning_rate=3e-4,
    epsilon=1e-7,
    schedule="cosine",
    warmup=100,
    weight_decay=0.01,
    clip_norm=1.0,
    ema=0.99,
    bn_batches=16,
    momentum=0.95,
    loss="focal-tversky",
    alpha=0.7,
    bce_weight=1.0,
    label_smoothing=0.05,
    freeze=(),
    monitor="val_loss",
    patience=20,
    augmentation=AUGMENTATIONS["full"],
)

PRESETS: Mapping[tuple[str, Kind], Preset] = MappingProxyType(
    {
        ("article", "classifier"): _ARTICLE,
        ("article", "segmenter"): _ARTICLE,
        ("best", "classifier"): _BEST_CLASSIFIER,
        ("best", "segmenter"): replace(
            _BEST_CLASSIFIER,
            slices="0.25",
            epochs=30,
            learning_rate=2e-3,
            ema=0.995,
            momentum=0.97,
            loss="tversky+bce",
            alpha=0.6,
            label_smoothing=0.0,
            monitor="val_dice",
        ),
    }
)


def share_of_negatives(slices: str) -> float:
    """Of the tumour-free slices, how many an epoch holds: 0 for "tumour", 1 for "all", else the number."""
    try:
        share = {"tumour": 0.0, "all": 1.0}.get(slices)
        share = float(slices) if share is None else share
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"--slices {slices}: give tumour, all, or a share of the others between 0 and 1")
    return share


def with_settings(preset: Preset, settings: Mapping[str, str]) -> Preset:
    """The preset with some of its values changed.

    Args:
        preset: what to start from.
        settings: texts by name of field; "augmentation" takes none, light or full, and "augmentation.elastic"
            names one of its fields.

    Raises:
        UsageError: no such field, or a text that is no value of it.
    """
    for name, text in settings.items():
        if name == "augmentation":
            if text not in AUGMENTATIONS:
                raise UsageError(f"--set {name}={text}: give one of {', '.join(AUGMENTATIONS)}")
            preset = replace(preset, augmentation=AUGMENTATIONS[text])
        elif name.startswith("augmentation."):
            if preset.augmentation is None:
                raise UsageError(
                    f"--set {name}={text}: the recipe has no augmentation; add --augmentation full"
                )
            changed = _changed(preset.augmentation, name.partition(".")[2], text, name)
            preset = replace(preset, augmentation=changed)
        else:
            preset = _changed(preset, name, text, name)
    share_of_negatives(preset.slices)
    return preset


def with_fractions(preset: Preset, validation: float | None, test: float | None) -> Preset:
    """The preset with other validation and test parts; None leaves one as it is. Training takes the rest."""
    validation = preset.fractions[1] if validation is None else validation
    test = preset.fractions[2] if test is None else test
    if validation + test >= 1:
        raise UsageError(
            f"--validation-fraction {validation:g} and --test-fraction {test:g} leave none to train on"
        )
    return replace(preset, fractions=(round(1 - validation - test, 6), validation, test))


def _changed(recipe: Any, field: str, text: str, name: str) -> Any:
    hints = get_type_hints(type(recipe))
    settable = [each.name for each in fields(recipe) if each.name not in ("name", "fractions")]
    if field not in settable:
        raise UsageError(f"--set {name}={text}: no such field; there are {', '.join(settable)}")
    return replace(recipe, **{field: _value(hints[field], text, name)})


def _value(hint: Any, text: str, name: str) -> Any:
    choices = get_args(hint)
    if get_origin(hint) is Literal and text not in choices:
        raise UsageError(f"--set {name}={text}: give one of {', '.join(choices)}")
    if get_origin(hint) is tuple:
        return tuple(piece.strip() for piece in text.split(",") if piece.strip())
    try:
        return hint(text) if hint in (int, float) else text
    except ValueError as error:
        raise UsageError(f"--set {name}={text}: give a number") from error
