"""What a recipe means to Keras: optimizer, schedule, loss, metrics, and the layers that are left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from engine.errors import UsageError
from trainer.losses import PooledDice, focal_tversky, tversky, tversky_bce
from trainer.presets import Kind, Preset

LAST_RATE = 0.02
"""Of the highest learning rate, what the cosine ends at."""
LONGEST_WARMUP = 0.2
"""Of all steps, the most that warm up, however short the training."""


def choose_optimizer(model: keras.Model, preset: Preset, steps: int) -> keras.optimizers.Optimizer:
    """Adam as the recipe has it; decay pulls at kernels only, not at biases and batch normalisations.

    Args:
        model: what it will train, frozen layers already frozen.
        preset: the recipe.
        steps: batches an epoch.
    """
    optimizer = keras.optimizers.Adam(
        learning_rate=_learning_rate(preset, steps),
        epsilon=preset.epsilon,
        weight_decay=preset.weight_decay or None,
        global_clipnorm=preset.clip_norm or None,
        use_ema=preset.ema > 0,
        ema_momentum=preset.ema or 0.99,
    )
    if preset.weight_decay:
        optimizer.exclude_from_weight_decay(
            var_list=[variable for variable in model.trainable_variables if variable.name != "kernel"]
        )
    return optimizer


def _learning_rate(preset: Preset, steps: int) -> Any:
    if preset.schedule == "plateau":
        return preset.learning_rate
    total = preset.epochs * steps
    warmup = min(preset.warmup, int(LONGEST_WARMUP * total))
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else preset.learning_rate,
        decay_steps=total - warmup,
        alpha=LAST_RATE,
        warmup_target=preset.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def choose_loss(kind: Kind, preset: Preset) -> Any:
    """The loss of a kind of model."""
    if kind == "classifier":
        return keras.losses.CategoricalCrossentropy(label_smoothing=preset.label_smoothing)
    if preset.loss == "focal-tversky":
        return focal_tversky(preset.alpha)
    return tversky_bce(preset.alpha, preset.bce_weight)


def choose_metrics(kind: Kind) -> list[Any]:
    """What history.csv and metrics.json hold beside the loss."""
    return ["accuracy", keras.metrics.AUC(name="auc")] if kind == "classifier" else [tversky, PooledDice()]


def freeze(model: keras.Model, beginnings: Sequence[str]) -> None:
    """Leave layers whose names begin so as they are; their batch normalisations use the moving averages.

    Raises UsageError for a beginning that no layer with weights has.
    """
    for beginning in beginnings:
        # Up to the next "_": "conv1" is not "conv10".
        found = [
            layer for layer in model.layers if layer.weights and f"{layer.name}_".startswith(f"{beginning}_")
        ]
        for layer in found:
            layer.trainable = False
        if not found:
            names = dict.fromkeys(layer.name.split("_")[0] for layer in model.layers if layer.weights)
            raise UsageError(f"--freeze {beginning}: no such layers; {model.name} has {', '.join(names)}")
