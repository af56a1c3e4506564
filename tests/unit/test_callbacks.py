from __future__ import annotations

import json
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the train extra")

from trainer.callbacks import (  # noqa: E402
    Clock,
    EpochOrder,
    ReplayHistory,
    Report,
    has_stopped,
    next_epoch,
    read_history,
    rewrite_history,
)
from trainer.dataset import load_frame  # noqa: E402
from trainer.loader import SliceBatches  # noqa: E402

# Keras reads the learning rate by np.array(), which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEADER = "epoch,learning_rate,loss,val_loss\n"


def rows_of(*val_losses: float) -> list[dict[str, float]]:
    return [{"epoch": epoch, "loss": 0.5, "val_loss": loss} for epoch, loss in enumerate(val_losses)]


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path / "history.csv"


@pytest.fixture
def model() -> keras.Model:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model


def rate_of(model: keras.Model) -> float:
    return float(model.optimizer.learning_rate.numpy())


def test_an_epoch_that_ran_twice_counts_once_as_it_was_last(history: Path) -> None:
    history.write_text(f"{HEADER}0,0.1,0.9,0.8\n1,0.1,0.7,0.6\n1,0.1,0.71,0.61\n2,0.1,0.5,0.4\n")
    rows = read_history(history)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[1] == {"epoch": 1, "learning_rate": 0.1, "loss": 0.71, "val_loss": 0.61}


def test_a_row_that_a_kill_cut_off_does_not_count(history: Path) -> None:
    history.write_text(f"{HEADER}0,0.1,0.9,0.8\n1,0.1,0.")
    assert [row["epoch"] for row in read_history(history)] == [0]


def test_epochs_that_will_run_again_are_left_out(history: Path) -> None:
    history.write_text(f"{HEADER}0,0.1,0.9,0.8\n1,0.1,0.7,0.6\n2,0.1,0.5,0.4\n")
    assert [row["epoch"] for row in read_history(history, before=2)] == [0, 1]


@pytest.mark.parametrize("content", [None, "", HEADER, "epo"])
def test_a_history_without_epochs_has_no_rows(history: Path, content: str | None) -> None:
    if content is not None:
        history.write_text(content)
    assert read_history(history) == []


def test_a_history_is_written_back_as_it_was_logged(history: Path, model: keras.Model) -> None:
    x = np.linspace(0, 1, 8)[:, None]
    model.fit(
        x,
        2 * x,
        validation_data=(x, 2 * x),
        epochs=3,
        verbose=0,
        callbacks=[keras.callbacks.CSVLogger(history)],
    )
    logged = history.read_text().split()
    rewrite_history(history, read_history(history, before=2))
    assert history.read_text().split() == logged[:3]
    assert list(history.parent.iterdir()) == [history]


def test_a_history_without_whole_epochs_is_removed(history: Path) -> None:
    history.write_text("epo")
    rewrite_history(history, [])
    assert not history.exists()


def write_backup(folder: Path, weights: str, epoch: int | None, age: float = 0.0, ending: str = "") -> None:
    """A pair as BackupAndRestore leaves it, `age` seconds old; no epoch: killed before it was written."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"latest.weights.h5{ending}"]
    paths[0].write_text(weights)
    if epoch is not None:
        paths.append(folder / f"training_metadata.json{ending}")
        paths[1].write_text(json.dumps({"epoch": epoch, "batch": 0}))
    for path in paths:
        stamp = path.stat().st_mtime - age
        os.utime(path, (stamp, stamp))


def test_no_backup_means_from_the_start(tmp_path: Path) -> None:
    assert next_epoch(tmp_path / "backup") == 0


def test_a_whole_backup_is_gone_on_from(tmp_path: Path) -> None:
    write_backup(tmp_path / "backup", "of two", 2, age=60, ending=".bkp")
    write_backup(tmp_path / "backup", "of three", 3)
    assert next_epoch(tmp_path / "backup") == 3
    assert (tmp_path / "backup" / "latest.weights.h5").read_text() == "of three"


def test_weights_newer_than_their_epoch_give_way_to_the_pair_before(tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    write_backup(folder, "of two", 2, age=60)
    write_backup(folder, "of two", 2, age=60, ending=".bkp")
    (folder / "latest.weights.h5").write_text("of three, or a part of them")
    for _ in range(2):
        assert next_epoch(folder) == 2
        assert (folder / "latest.weights.h5").read_text() == "of two"


def test_an_epoch_that_was_cut_off_while_written_gives_way_to_the_pair_before(tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    write_backup(folder, "of two", 2, age=60, ending=".bkp")
    write_backup(folder, "of three", 3)
    (folder / "training_metadata.json").write_text("")
    assert next_epoch(folder) == 2
    assert (folder / "latest.weights.h5").read_text() == "of two"


def test_a_first_backup_that_was_cut_off_is_none(tmp_path: Path) -> None:
    write_backup(tmp_path / "backup", "of one, or a part of them", None)
    assert next_epoch(tmp_path / "backup") == 0
    assert list((tmp_path / "backup").iterdir()) == []


@pytest.mark.parametrize(
    ("losses", "stopped"),
    [((), False), ((3, 2, 1), False), ((1, 2), False), ((1, 2, 2), True), ((3, 2, 2, 4), True)],
)
def test_a_training_has_stopped_when_val_loss_stood_still_for_its_patience(
    losses: tuple[float, ...], stopped: bool
) -> None:
    assert has_stopped(rows_of(*losses), patience=2) == stopped


def test_a_figure_that_should_rise_stops_when_it_no_longer_does() -> None:
    past = [{"val_dice": dice} for dice in (0.5, 0.6, 0.6, 0.4)]
    assert has_stopped(past, 2, "val_dice", highest=True)
    assert not has_stopped(past[:3], 2, "val_dice", highest=True)


def test_has_stopped_agrees_with_early_stopping(model: keras.Model) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        early = keras.callbacks.EarlyStopping(monitor="val_loss", patience=3)
        early.set_model(model)
        model.stop_training = False
        early.on_train_begin()
        past: list[dict[str, float]] = []
        while not model.stop_training and len(past) < 30:
            past += [{"val_loss": float(rng.integers(0, 20))}]
            early.on_epoch_end(len(past) - 1, past[-1])
            assert has_stopped(past, 3) == model.stop_training


def test_replayed_epochs_count_for_the_patience(model: keras.Model) -> None:
    early = keras.callbacks.EarlyStopping(monitor="val_loss", patience=3)
    replay = ReplayHistory(rows_of(0.5, 0.6, 0.7), [early])
    for callback in (early, replay):
        callback.set_model(model)
        callback.on_train_begin()
    model.stop_training = False
    early.on_epoch_end(3, {"val_loss": 0.55})
    assert model.stop_training


def test_a_replayed_plateau_does_not_lower_the_rate_again_but_the_next_one_does(model: keras.Model) -> None:
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.2, patience=2)
    model.optimizer.learning_rate = 0.02  # as restored: it was 0.1 before the plateau of epochs 1 and 2
    replay = ReplayHistory(rows_of(0.5, 0.6, 0.7, 0.8), [plateau])
    for callback in (plateau, replay):
        callback.set_model(model)
        callback.on_train_begin()
    assert rate_of(model) == pytest.approx(0.02)
    plateau.on_epoch_end(4, {"val_loss": 0.9})
    assert rate_of(model) == pytest.approx(0.004)


def test_replay_changes_no_row_of_the_past(model: keras.Model) -> None:
    past = rows_of(0.5, 0.6)
    replay = ReplayHistory(past, [keras.callbacks.ReduceLROnPlateau(monitor="val_loss", patience=1)])
    replay.callbacks[0].set_model(model)
    replay.set_model(model)
    replay.callbacks[0].on_train_begin()
    replay.on_train_begin()
    assert past == rows_of(0.5, 0.6)


def test_a_resumed_fit_sees_the_order_of_its_epoch(tmp_path: Path) -> None:
    (tmp_path / "patient").mkdir()
    for number in range(12):
        image = np.full((8, 8, 3), 20 * number, np.uint8)
        assert cv2.imwrite(str(tmp_path / "patient" / f"{number}.png"), image)
        assert cv2.imwrite(str(tmp_path / "patient" / f"{number}_mask.png"), image[..., 0] * (number % 2))
    frame = load_frame(tmp_path)

    def seen(first: int) -> list[list[float]]:
        """The grey levels of the slices of each epoch, in the order in which the model got them."""
        levels: list[float] = []
        inner = keras.Input((256, 256, 3))
        model = keras.Model(inner, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(inner)))
        model.compile("sgd", lambda truth, guess: keras.ops.mean(truth * 0 + guess * 0), run_eagerly=True)
        call = model.call

        def watched(images: keras.KerasTensor, *args: object, **kwargs: object) -> object:
            levels.extend(np.asarray(images)[:, 128, 128, 0].tolist())
            return call(images, *args, **kwargs)

        model.call = watched
        batches = SliceBatches(frame, target="class", batch_size=5, shuffle=True, seed=2)
        model.fit(
            batches, epochs=3, initial_epoch=first, shuffle=False, verbose=0, callbacks=[EpochOrder(batches)]
        )
        return [levels[start : start + 12] for start in range(0, len(levels), 12)]

    undisturbed = seen(0)
    assert [sorted(epoch) for epoch in undisturbed] == [sorted(undisturbed[0])] * 3
    assert len({tuple(epoch) for epoch in undisturbed}) == 3
    assert seen(2) == undisturbed[2:]


def test_steps_and_epochs_are_reported_as_they_end(model: keras.Model) -> None:
    steps: list[tuple[int, int]] = []
    epochs: list[int] = []
    report = Report(lambda *step: steps.append(step), lambda epoch, _: epochs.append(epoch))
    x = np.zeros((6, 1))
    model.fit(x, x, batch_size=3, epochs=3, initial_epoch=1, verbose=0, callbacks=[report])
    assert steps == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert epochs == [1, 2]


def test_dropout_draws_alike_in_an_epoch_whether_others_came_before_it_or_not(tmp_path: Path) -> None:
    (tmp_path / "patient").mkdir()
    assert cv2.imwrite(str(tmp_path / "patient" / "0.png"), np.zeros((8, 8, 3), np.uint8))
    assert cv2.imwrite(str(tmp_path / "patient" / "0_mask.png"), np.zeros((8, 8), np.uint8))
    order = EpochOrder(SliceBatches(load_frame(tmp_path), target="class", seed=5))
    inner = keras.Input((64,))
    first = keras.layers.Dropout(0.5)(inner)
    model = keras.Model(inner, [first, keras.layers.Dropout(0.5)(inner)])
    order.set_model(model)

    def drawn(epoch: int) -> list[list[float]]:
        order.on_epoch_begin(epoch)
        steps = [model(np.ones((1, 64), np.float32), training=True) for _ in range(2)]
        return [np.asarray(layer)[0].tolist() for step in steps for layer in step]

    undisturbed = [drawn(epoch) for epoch in range(3)]
    assert drawn(2) == undisturbed[2]
    assert len({str(mask) for epoch in undisturbed for mask in epoch}) == 12  # by epoch, step and layer


def test_the_clock_logs_seconds_and_a_scheduled_learning_rate() -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    schedule = keras.optimizers.schedules.CosineDecay(0.0, 8, warmup_target=0.1, warmup_steps=2)
    model.compile(keras.optimizers.Adam(schedule), "mse")
    x = np.zeros((6, 1))
    begun = time.process_time()
    figures = model.fit(x, x, batch_size=3, epochs=5, verbose=0, callbacks=[Clock()]).history
    assert figures["learning_rate"][0] == pytest.approx(0.1)
    assert figures["learning_rate"][-1] == pytest.approx(0.0, abs=1e-6)
    assert all(0 <= seconds < 600 for seconds in figures["seconds"])
    assert 0 < sum(figures["cpu_seconds"]) <= time.process_time() - begun + 0.05


def test_a_history_begun_without_cpu_seconds_goes_on_without_them() -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.zeros((2, 1))
    figures = model.fit(x, x, epochs=1, verbose=0, callbacks=[Clock(cpu=False)]).history
    assert set(figures) == {"loss", "learning_rate", "seconds"}
