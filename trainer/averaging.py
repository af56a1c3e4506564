"""The weights that are validated and kept: averaged, with batch statistics of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from trainer.loader import SliceBatches


class KeepBest(keras.callbacks.ModelCheckpoint):  # type: ignore[misc]
    """Validates the averaged weights, and keeps them where they are the best so far.

    Training goes on with the raw weights: outside of validation and saving, and so in a backup, the model
    holds these and the optimizer the averages. `keras.callbacks.SwapEMAWeights` would leave them exchanged at
    the end of an epoch, where a backup that follows it takes the averages for the weights.

    An optimizer averages weights only. The moving statistics of batch normalisation belong to the raw weights
    of the last steps, so they are taken anew for the weights that are validated, as means over the epoch's
    first batches. They have no part in training, which normalises by the batch's own.

    Args:
        path: of the weights, *.weights.h5; without the state of the optimizer, which would treble the file.
        monitor: the figure that decides, "val_loss" say.
        highest: whether it is better when it is higher.
        best: what it was at its best before, or None.
        batches: the training part.
        averaged: whether the optimizer averages weights (`use_ema`).
        bn_batches: over how many batches the statistics are taken; 0 keeps the moving ones.
    """

    def __init__(
        self,
        path: Path,
        *,
        monitor: str,
        highest: bool,
        best: float | None,
        batches: SliceBatches,
        averaged: bool,
        bn_batches: int,
    ) -> None:
        super().__init__(
            path,
            monitor=monitor,
            mode="max" if highest else "min",
            save_best_only=True,
            save_weights_only=True,
            initial_value_threshold=best,
        )
        self.batches = batches
        self.averaged = averaged
        self.bn_batches = bn_batches
        self.trained: Any = None

    def set_model(self, model: keras.Model) -> None:
        """Remember the model in training; what is saved is a twin of it that has no optimizer."""
        self.trained = model
        super().set_model(without_optimizer(model))

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Put the averages in, with their statistics."""
        self._exchange()
        if self.bn_batches:
            take_statistics(self.trained, self.batches, self.bn_batches)

    def on_test_end(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Put the raw weights back."""
        self._exchange()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Save the averages if they are the best so far."""
        self._exchange()
        super().on_epoch_end(epoch, logs)
        self._exchange()

    def _exchange(self) -> None:
        """Weights and averages change places, to the bit (Keras' own callback adds and subtracts them)."""
        if not self.averaged:
            return
        optimizer = getattr(self.trained.optimizer, "inner_optimizer", self.trained.optimizer)
        averages = optimizer._model_variables_moving_average
        for weight, average in zip(self.trained.trainable_variables, averages, strict=True):
            held = keras.ops.convert_to_numpy(weight).copy()
            weight.assign(average)
            average.assign(held)


def without_optimizer(model: keras.Model) -> keras.Model:
    """A model of the same layers that was not compiled: its weights file holds weights only."""
    return keras.Model(model.input, model.output, name=model.name)


def take_statistics(model: keras.Model, batches: SliceBatches, count: int) -> None:
    """Set every trained batch normalisation to the mean and variance over the first `count` batches.

    Frozen layers keep theirs. Source: Wu and Johnson 2021, arXiv:2105.07576 ("PreciseBN").
    """
    layers = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    momenta = [layer.momentum for layer in layers]
    try:
        for number in range(min(count, len(batches))):
            for layer in layers:
                layer.momentum = number / (number + 1)  # the plain mean of all so far
            model(batches[number][0], training=True)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
