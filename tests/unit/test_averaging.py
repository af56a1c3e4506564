from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

keras = pytest.importorskip("keras", reason="needs the train extra")

from trainer.averaging import KeepBest, take_statistics, without_optimizer  # noqa: E402
from trainer.callbacks import EpochOrder  # noqa: E402
from trainer.dataset import load_frame  # noqa: E402
from trainer.loader import SliceBatches  # noqa: E402

# Keras reads variables by np.array(), which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MOMENTUM = 0.6


@pytest.fixture
def batches(tmp_path: Path) -> SliceBatches:
    """Four batches of two slices, with tumour and without."""
    folder = tmp_path / "data" / "patient"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        image = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) // (1 + number % 3)
        assert cv2.imwrite(str(folder / f"{number}.png"), image)
        assert cv2.imwrite(str(folder / f"{number}_mask.png"), image[..., 0] * (number % 2))
    return SliceBatches(load_frame(tmp_path / "data"), target="class", batch_size=2, shuffle=True, seed=1)


def build(*, averaged: bool = True) -> keras.Model:
    keras.utils.set_random_seed(0)
    images = keras.Input((256, 256, 3))
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.AveragePooling2D(32)(x)
    x = keras.layers.Conv2D(4, 1)(x)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    model = keras.Model(images, keras.layers.Dense(2, activation="softmax")(x), name="tiny")
    model.compile(
        keras.optimizers.Adam(0.05, use_ema=averaged, ema_momentum=MOMENTUM), "categorical_crossentropy"
    )
    return model


class Watch(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes the weights after each step, in each validation and after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[npt.NDArray[Any]]] = []
        self.tests: list[list[npt.NDArray[Any]]] = []
        self.epochs: list[list[npt.NDArray[Any]]] = []

    def now(self) -> list[npt.NDArray[Any]]:
        return [keras.ops.convert_to_numpy(each).copy() for each in self.model.trainable_variables]

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.steps.append(self.now())

    def on_test_begin(self, logs: object = None) -> None:
        self.tests.append(self.now())

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.epochs.append(self.now())


def keep(batches: SliceBatches, path: Path, *, averaged: bool = True, bn_batches: int = 0) -> KeepBest:
    return KeepBest(
        path, monitor="val_loss", highest=False, best=None, batches=batches, averaged=averaged,
        bn_batches=bn_batches,
    )  # fmt: skip


def trained(
    model: keras.Model, batches: SliceBatches, keeping: KeepBest, epochs: int = 3
) -> tuple[Watch, list[float]]:
    watch = Watch()
    history = model.fit(
        batches, validation_data=batches, epochs=epochs, shuffle=False, verbose=0,
        callbacks=[EpochOrder(batches), keeping, watch],
    )  # fmt: skip
    return watch, history.history["val_loss"]


def averages(steps: list[list[npt.NDArray[Any]]]) -> list[npt.NDArray[Any]]:
    held = steps[0]
    for weights in steps[1:]:
        held = [MOMENTUM * old + (1 - MOMENTUM) * new for old, new in zip(held, weights, strict=True)]
    return held


def assert_alike(first: list[npt.NDArray[Any]], second: list[npt.NDArray[Any]]) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_averages_are_validated_and_training_goes_on_with_the_raw_weights(
    batches: SliceBatches, tmp_path: Path
) -> None:
    watch, _ = trained(build(), batches, keep(batches, tmp_path / "best.weights.h5"))
    for epoch in range(3):
        assert_alike(watch.tests[epoch], averages(watch.steps[: 4 * epoch + 4]))
        for raw, after in zip(watch.steps[4 * epoch + 3], watch.epochs[epoch], strict=True):
            np.testing.assert_array_equal(raw, after)  # to the bit: a backup is made now


def test_validating_changes_nothing_of_the_training(batches: SliceBatches, tmp_path: Path) -> None:
    validated, _ = trained(build(), batches, keep(batches, tmp_path / "best.weights.h5", bn_batches=3))
    alone = Watch()
    build().fit(batches, epochs=3, shuffle=False, verbose=0, callbacks=[EpochOrder(batches), alone])
    assert_alike(validated.steps[-1], alone.steps[-1])


def test_what_is_kept_is_what_was_validated_at_its_best_and_no_optimizer(
    batches: SliceBatches, tmp_path: Path
) -> None:
    path = tmp_path / "best.weights.h5"
    _, losses = trained(build(), batches, keep(batches, path, bn_batches=4))
    again = without_optimizer(build())
    again.load_weights(path)
    again.compile(loss="categorical_crossentropy")
    assert again.evaluate(batches, verbose=0) == pytest.approx(min(losses), rel=1e-4)
    assert path.stat().st_size < 100_000


def test_without_averages_the_last_weights_are_kept(batches: SliceBatches, tmp_path: Path) -> None:
    keeping = keep(batches, tmp_path / "best.weights.h5", averaged=False)
    watch, _ = trained(build(averaged=False), batches, keeping, epochs=1)
    assert_alike(watch.tests[0], watch.steps[-1])
    again = without_optimizer(build())
    again.load_weights(tmp_path / "best.weights.h5")
    assert_alike([keras.ops.convert_to_numpy(each) for each in again.trainable_variables], watch.steps[-1])


def test_a_better_figure_of_before_is_not_overwritten(batches: SliceBatches, tmp_path: Path) -> None:
    keeping = KeepBest(
        tmp_path / "best.weights.h5", monitor="val_loss", highest=False, best=-1.0, batches=batches,
        averaged=True, bn_batches=0,
    )  # fmt: skip
    trained(build(), batches, keeping, epochs=1)
    assert not (tmp_path / "best.weights.h5").exists()


@pytest.mark.parametrize("count", [1, 3, 99])
def test_statistics_are_the_means_over_the_first_batches(batches: SliceBatches, count: int) -> None:
    model = build()
    (norm,) = (layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    before = keras.Model(model.input, norm.input)
    values = [np.asarray(before(batches[number][0])) for number in range(min(count, 4))]
    take_statistics(model, batches, count)
    mean = np.mean([each.mean(axis=(0, 1, 2)) for each in values], axis=0)
    variance = np.mean([each.var(axis=(0, 1, 2)) for each in values], axis=0)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(norm.moving_mean), mean, atol=1e-5)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(norm.moving_variance), variance, rtol=1e-3)
    assert norm.momentum == 0.9


def test_a_frozen_normalisation_keeps_its_statistics(batches: SliceBatches) -> None:
    model = build()
    (norm,) = (layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    norm.trainable = False
    take_statistics(model, batches, 2)
    assert not keras.ops.convert_to_numpy(norm.moving_mean).any()
