from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.errors import UsageError

keras = pytest.importorskip("keras", reason="needs the train extra")

from trainer.optimise import choose_loss, choose_optimizer, freeze  # noqa: E402
from trainer.presets import PRESETS, Preset  # noqa: E402

# Keras reads variables by np.array(), which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BEST = PRESETS[("best", "segmenter")]
PLAIN = replace(BEST, weight_decay=0.0, clip_norm=0.0, ema=0.0, warmup=0, learning_rate=0.1)


@pytest.fixture
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="stem1_dense", bias_initializer="ones"),
            keras.layers.BatchNormalization(name="stem1_bn"),
            keras.layers.Dense(1, name="stem10_dense", bias_initializer="ones"),
        ]
    )


def rates(preset: Preset, steps: int, model: keras.Model) -> list[float]:
    optimizer = choose_optimizer(model, preset, steps)
    found = []
    for step in range(preset.epochs * steps + 1):
        optimizer.iterations.assign(step)
        found.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
    return found


def test_the_rate_rises_by_step_and_falls_by_step_to_a_fiftieth(model: keras.Model) -> None:
    found = rates(replace(PLAIN, epochs=5, warmup=10), 20, model)
    assert found[0] == 0
    assert found[5] == pytest.approx(0.05)
    assert found[10] == pytest.approx(0.1)
    assert found[55] == pytest.approx(0.1 * (0.02 + 0.98 / 2), rel=1e-3)
    assert found[100] == pytest.approx(0.002)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert len(set(found)) == 101


def test_a_short_training_warms_up_for_a_fifth_of_it_at_most(model: keras.Model) -> None:
    found = rates(replace(PLAIN, epochs=1, warmup=1000), 10, model)
    assert max(found) == found[2] == pytest.approx(0.1)


def test_no_warm_up_begins_at_the_highest(model: keras.Model) -> None:
    assert rates(replace(PLAIN, epochs=1), 10, model)[0] == pytest.approx(0.1)


def test_a_plateau_starts_with_a_rate_that_can_be_set(model: keras.Model) -> None:
    optimizer = choose_optimizer(model, replace(PLAIN, schedule="plateau"), 10)
    optimizer.learning_rate = 0.01
    assert float(keras.ops.convert_to_numpy(optimizer.learning_rate)) == pytest.approx(0.01)


def test_decay_pulls_at_kernels_only(model: keras.Model) -> None:
    optimizer = choose_optimizer(model, replace(PLAIN, weight_decay=0.5), 10)
    before = {each.path: np.array(each) for each in model.trainable_variables}
    optimizer.apply([keras.ops.zeros(each.shape) for each in model.trainable_variables],
                    model.trainable_variables)  # fmt: skip
    for variable in model.trainable_variables:
        factor = 0.95 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(np.array(variable), factor * before[variable.path], rtol=1e-5)


def test_all_gradients_together_are_clipped(model: keras.Model) -> None:
    optimizer = choose_optimizer(model, replace(PLAIN, clip_norm=1.0), 10)
    assert optimizer.global_clipnorm == 1.0
    assert choose_optimizer(model, PLAIN, 10).global_clipnorm is None


def test_the_averages_momentum_is_the_recipes(model: keras.Model) -> None:
    optimizer = choose_optimizer(model, replace(PLAIN, ema=0.9), 10)
    assert (optimizer.use_ema, optimizer.ema_momentum) == (True, 0.9)
    assert not choose_optimizer(model, PLAIN, 10).use_ema


def test_frozen_layers_are_named_by_their_beginnings_up_to_an_underscore(model: keras.Model) -> None:
    freeze(model, ("stem1",))
    assert [layer.trainable for layer in model.layers] == [False, False, True]
    assert len(model.trainable_variables) == 2


def test_layers_that_are_not_there_cannot_be_frozen(model: keras.Model) -> None:
    with pytest.raises(UsageError, match=r"--freeze conv9: no such layers; .* has stem1, stem10"):
        freeze(model, ("stem1", "conv9"))


def test_label_smoothing_moves_the_truth_towards_the_middle() -> None:
    truth, guess = np.array([[0.0, 1.0]], np.float32), np.array([[0.05, 0.95]], np.float32)

    def loss(smoothing: float) -> float:
        preset = replace(PRESETS[("best", "classifier")], label_smoothing=smoothing)
        return float(keras.ops.convert_to_numpy(choose_loss("classifier", preset)(truth, guess)))

    assert loss(0.0) == pytest.approx(-np.log(0.95), rel=1e-4)
    assert loss(0.1) == pytest.approx(-0.95 * np.log(0.95) - 0.05 * np.log(0.05), rel=1e-4)
