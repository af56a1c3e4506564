"""Training, from a tree of slices to a run folder. Reads top to bottom.

A run folder holds
    config.json       what was asked for; a resumed run must ask for the same
    split.json        which patients (or slices) are trained on, validated on, kept for the test
    history.csv       a row an epoch            curves.png   the same, drawn
    tensorboard/      the same, for TensorBoard where it is installed
    best.weights.h5   the weights of the epoch with the best figure (`monitor`) on the validation part
    metrics.json      what those weights reach on the validation and test parts; epochs and steps
    backup/           the state of the last epoch, for resuming

The same request gives the same split, slices, order, augmentation, drop-out and initial weights. Sums are
taken in an order that the machine's threads choose (and a GPU's kernels), so that weights of two runs agree
to rounding only; in bfloat16 they drift apart over the epochs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import keras
import numpy as np
import pandas as pd

from engine.errors import UsageError
from engine.runners import BF16_FLAGS, cpu_flags
from trainer.averaging import KeepBest, without_optimizer
from trainer.cache import SliceCache
from trainer.callbacks import Clock, EpochOrder, ReplayHistory, Report, has_stopped, read_history
from trainer.classifier import build_classifier, load_weights_by_layer
from trainer.dataset import Part, Split, load_frame
from trainer.loader import SliceBatches
from trainer.optimise import choose_loss, choose_metrics, choose_optimizer, freeze
from trainer.presets import Kind, share_of_negatives
from trainer.runs import Request, begin, config_of, is_begun, past_epochs
from trainer.segmenter import build_segmenter
from trainer.splits import split_by_fold, split_by_patient, split_by_slice
from trainer.tensorboard import scalars

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
    cv2.setNumThreads(1)  # slices are small: threads cost more than they give
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
    steps = len(batches["train"])
    freeze(model, preset.freeze)
    model.compile(
        choose_optimizer(model, preset, steps),
        choose_loss(request.kind, preset),
        metrics=choose_metrics(request.kind),
    )
    if not begun:
        begin(request.run, config, split)

    first, past = past_epochs(request.run)
    stopped = has_stopped(past, preset.patience, preset.monitor, highest=preset.highest_is_best)
    if first < preset.epochs and not stopped:
        watcher.on_start(first, preset.epochs, steps)
        model.fit(
            batches["train"],
            validation_data=batches["validation"],
            epochs=preset.epochs,
            shuffle=False,
            verbose=0,
            callbacks=_callbacks(request, batches["train"], past, watcher),
        )
    _draw_curves(request.run)
    without_optimizer(model).load_weights(request.run / "best.weights.h5")
    metrics: dict[str, Any] = {
        part: _measure(model, request.kind, batches[part]) for part in batches if part != "train"
    }
    metrics["epochs"] = len(read_history(request.run / "history.csv"))
    metrics["steps"] = metrics["epochs"] * steps
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
    preset = request.preset
    if request.split is not None:
        return Split.load(request.split)
    if request.folds:
        if preset.split == "slice":
            raise UsageError("--folds splits patients: give --by patient with it")
        return split_by_fold(frame, request.seed, request.folds, request.fold, preset.fractions[1])
    by = split_by_slice if preset.split == "slice" else split_by_patient
    return by(frame, request.seed, preset.fractions)


def _batches(request: Request, frame: pd.DataFrame, split: Split) -> dict[Part, SliceBatches]:
    """A loader for each part that has anyone in it; a split may have no test part."""
    preset = request.preset
    target: Literal["mask", "class"] = "mask" if request.kind == "segmenter" else "class"
    cache = SliceCache(request.cache)
    made: dict[Part, SliceBatches] = {}
    for part in get_args(Part):
        if not split.names(part):
            continue
        rows = split.select(frame, part)
        if part == "train" and request.extra:
            rows = pd.concat([rows, *(load_frame(path) for path in request.extra)], ignore_index=True)
        if request.limit and request.limit < len(rows):
            rows = rows.iloc[np.linspace(0, len(rows) - 1, request.limit).astype(int)]
        made[part] = SliceBatches(
            rows,
            target=target,
            batch_size=preset.batch_size,
            shuffle=True,  # but for the training part always alike: a batch's loss depends on its neighbours
            negatives=share_of_negatives(preset.slices) if request.kind == "segmenter" else 1.0,
            augmentation=preset.augmentation if part == "train" else None,
            seed=request.seed,
            cache=cache,
            workers=request.workers,
        )
        log.info("%s: %d slices", part, len(made[part].order))
    return made


def _callbacks(
    request: Request, batches: SliceBatches, past: Sequence[dict[str, float]], watcher: Watcher
) -> list[keras.callbacks.Callback]:
    """In the order in which they act after an epoch: the backup comes after all that it stands for."""
    preset = request.preset
    mode = "max" if preset.highest_is_best else "min"
    early = keras.callbacks.EarlyStopping(monitor=preset.monitor, mode=mode, patience=preset.patience)
    remembering: list[keras.callbacks.Callback] = [early]
    if preset.schedule == "plateau":
        remembering.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor=preset.monitor, mode=mode, factor=0.2, patience=preset.patience // 2
            )
        )
    history = [{name: value for name, value in row.items() if name != "epoch"} for row in past]
    figures = [row[preset.monitor] for row in history]
    best = None if not figures else max(figures) if preset.highest_is_best else min(figures)
    return [
        EpochOrder(batches),
        Clock(cpu=all("cpu_seconds" in row for row in past)),
        *remembering,
        KeepBest(
            request.run / "best.weights.h5",
            monitor=preset.monitor,
            highest=preset.highest_is_best,
            best=best,
            batches=batches,
            averaged=preset.ema > 0,
            bn_batches=preset.bn_batches,
        ),
        keras.callbacks.CSVLogger(request.run / "history.csv", append=True),
        keras.callbacks.BackupAndRestore(
            request.run / "backup", double_checkpoint=True, delete_checkpoint=False
        ),
        ReplayHistory(history, remembering),
        *scalars(request.run / "tensorboard", past),
        Report(watcher.on_step, watcher.on_epoch),
    ]


def _draw_curves(run: Path) -> None:
    from trainer.pictures import curves

    curves(run / "history.csv", run / "curves.png")


def _measure(model: keras.Model, kind: Kind, batches: SliceBatches) -> dict[str, float]:
    if kind == "segmenter":
        figures = model.evaluate(batches, verbose=0, return_dict=True)
        return {name: float(value) for name, value in figures.items()} | {"slices": len(batches.order)}
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

    truth = batches.labels[batches.order]
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
