"""Training, from a tree of slices to a run folder. Reads top to bottom.

A run folder holds
    config.json       what was asked for; a resumed run must ask for the same
    split.json        which patients (or slices) are trained on, validated on, kept for the test
    history.csv       a row an epoch            curves.png   the same, drawn
    best.weights.h5   the weights of the epoch with the lowest val_loss
    metrics.json      what those weights reach on the validation and test parts
    backup/           the state of the last epoch, for resuming
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import pandas as pd

from engine.runners import BF16_FLAGS, cpu_flags
from trainer.callbacks import EpochOrder, ReplayHistory, Report, cosine, has_stopped, read_history
from trainer.classifier import build_classifier, load_weights_by_layer
from trainer.dataset import Split, load_frame, split_by_patient, split_by_slice
from trainer.loader import SliceBatches
from trainer.losses import focal_tversky, tversky
from trainer.presets import Kind, Preset
from trainer.runs import Request, begin, config_of, is_begun, past_epochs
from trainer.segmenter import build_segmenter

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Watcher:
    """Where a caller hears of the training: before the first step, each step, each epoch."""

    on_start: Callable[[int, int, int], None] = lambda _first_epoch, _epochs, _steps: None
    on_step: Callable[[int, int], None] = lambda _epoch, _step: None
    on_epoch: Callable[[int, dict[str, float]], None] = lambda _epoch, _figures: None


def train(request: Request, watcher: Watcher | None = None) -> dict[str, Any]:
    """Train one model, or go on where a killed training stopped.

    Returns:
        What metrics.json holds.

    Raises:
        UsageError: data, split or weights that do not fit; a run folder of another request.
    """
    watcher = watcher or Watcher()
    preset = request.preset
    keras.utils.set_random_seed(request.seed)
    precision = choose_precision(request.precision)
    keras.config.set_dtype_policy(precision)

    config = config_of(request, precision)
    begun = is_begun(request.run, config)
    frame = load_frame(request.data)
    split = Split.load(request.run / "split.json") if begun else _new_split(request, frame)
    batches = _batches(request, frame, split)
    model = build_model(request.kind, weights=request.weights, momentum=preset.momentum)
    if request.kind == "classifier" and request.weights not in ("none", "imagenet"):
        filled = load_weights_by_layer(model, Path(request.weights))
        log.info("%s filled %d layers: %s", request.weights, len(filled), ", ".join(filled))
    _compile(model, request.kind, preset)
    if not begun:
        begin(request.run, config, split)

    first, past = past_epochs(request.run)
    if first < preset.epochs and not has_stopped(past, preset.patience):
        watcher.on_start(first, preset.epochs, len(batches["train"]))
        model.fit(
            batches["train"],
            validation_data=batches["validation"],
            epochs=preset.epochs,
            shuffle=False,
            verbose=0,
            callbacks=_callbacks(request, batches["train"], past, watcher),
        )
    _draw_curves(request.run)
    model.load_weights(request.run / "best.weights.h5")
    metrics: dict[str, Any] = {
        part: _measure(model, request.kind, batches[part]) for part in ("validation", "test")
    }
    metrics["epochs"] = len(read_history(request.run / "history.csv"))
    (request.run / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def build_model(kind: Kind, *, weights: str, momentum: float = 0.99, normalise: bool = True) -> keras.Model:
    """The untrained model of a kind; `weights` decides the classifier's input normalisation."""
    if kind == "segmenter":
        return build_segmenter(momentum=momentum, standardise=normalise)
    model = build_classifier(imagenet_input=weights != "none", momentum=momentum, normalise=normalise)
    if weights == "imagenet":
        full = keras.applications.ResNet50(weights="imagenet", include_top=False)
        for layer in full.layers:
            if layer.weights:
                model.get_layer(layer.name).set_weights(layer.get_weights())
    return model


def choose_precision(asked: str) -> str:
    """The policy to train in: "auto" is mixed_bfloat16 where the CPU multiplies in bfloat16, else float32."""
    if asked != "auto":
        return asked
    return "mixed_bfloat16" if cpu_flags() & BF16_FLAGS else "float32"


def _new_split(request: Request, frame: pd.DataFrame) -> Split:
    if request.split is not None:
        return Split.load(request.split)
    by = split_by_slice if request.preset.split == "slice" else split_by_patient
    return by(frame, request.seed, request.preset.fractions)


def _batches(request: Request, frame: pd.DataFrame, split: Split) -> dict[str, SliceBatches]:
    target: Literal["mask", "class"] = "mask" if request.kind == "segmenter" else "class"
    tumour_only = request.kind == "segmenter" and request.preset.slices == "tumour"
    made = {}
    for part in ("train", "validation", "test"):
        rows = split.select(frame, part)
        if part == "train" and request.extra:
            rows = pd.concat([rows, *(load_frame(path) for path in request.extra)], ignore_index=True)
        if tumour_only:
            rows = rows[rows["mask"] == 1]
        made[part] = SliceBatches(
            rows,
            target=target,
            batch_size=request.preset.batch_size,
            shuffle=part == "train",
            augmentation=request.preset.augmentation if part == "train" else None,
            seed=request.seed,
        )
        log.info("%s: %d slices", part, len(rows))
    return made


def _compile(model: keras.Model, kind: Kind, preset: Preset) -> None:
    optimizer = keras.optimizers.Adam(learning_rate=preset.learning_rate, epsilon=preset.epsilon)
    if kind == "segmenter":
        model.compile(optimizer, focal_tversky, metrics=[tversky])
    else:
        model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])


def _callbacks(
    request: Request, batches: SliceBatches, past: Sequence[dict[str, float]], watcher: Watcher
) -> list[keras.callbacks.Callback]:
    preset = request.preset
    early = keras.callbacks.EarlyStopping(monitor="val_loss", patience=preset.patience)
    remembering: list[keras.callbacks.Callback] = [early]
    schedule: list[keras.callbacks.Callback] = []
    if preset.schedule == "plateau":
        plateau = keras.callbacks.ReduceLROnPlateau(
            monitor="val_loss", factor=0.2, patience=preset.patience // 2
        )
        schedule.append(plateau)
        remembering.append(plateau)
    else:
        schedule.append(keras.callbacks.LearningRateScheduler(cosine(preset.epochs, preset.learning_rate)))
    history = [{name: value for name, value in row.items() if name != "epoch"} for row in past]
    return [
        EpochOrder(batches),
        *schedule,
        early,
        keras.callbacks.ModelCheckpoint(
            request.run / "best.weights.h5",
            monitor="val_loss",
            save_best_only=True,
            save_weights_only=True,
            initial_value_threshold=min((row["val_loss"] for row in history), default=None),
        ),
        keras.callbacks.CSVLogger(request.run / "history.csv", append=True),
        keras.callbacks.BackupAndRestore(
            request.run / "backup", double_checkpoint=True, delete_checkpoint=False
        ),
        ReplayHistory(history, remembering),
        Report(watcher.on_step, watcher.on_epoch),
    ]


def _draw_curves(run: Path) -> None:
    from trainer.pictures import curves

    curves(run / "history.csv", run / "curves.png")


def _measure(model: keras.Model, kind: Kind, batches: SliceBatches) -> dict[str, float]:
    if kind == "segmenter":
        figures = model.evaluate(batches, verbose=0, return_dict=True)
        return {name: float(value) for name, value in figures.items()} | {"slices": len(batches.images)}
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

    truth = np.array(batches.labels)
    probability = np.asarray(model.predict(batches, verbose=0))[:, 1]
    guess = (probability >= 0.5).astype(int)
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, guess, average="binary", zero_division=0.0
    )
    return {
        "accuracy": float(accuracy_score(truth, guess)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auc": float(roc_auc_score(truth, probability)) if len(set(truth.tolist())) == 2 else float("nan"),
        "slices": len(truth),
    }
