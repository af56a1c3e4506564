from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("keras", reason="needs the train extra")
pytest.importorskip("tensorboard", reason="scalars are written where tensorboard is installed")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.tensorboard import scalars


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, round(float(event.tensor_proto.float_val[0]), 4)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def test_training_and_validation_share_a_chart(tmp_path: Path) -> None:
    (callback,) = scalars(tmp_path, [])
    callback.on_train_begin()
    callback.on_epoch_end(0, {"loss": 0.5, "val_loss": 0.75})
    assert read(tmp_path / "train") == {"loss": [(0, 0.5)]}  # at once, not at the end
    callback.on_epoch_end(1, {"loss": 0.25, "val_loss": 0.5})
    callback.on_train_end()
    assert read(tmp_path / "train") == {"loss": [(0, 0.5), (1, 0.25)]}
    assert read(tmp_path / "validation") == {"loss": [(0, 0.75), (1, 0.5)]}


def test_an_epoch_that_was_run_twice_after_a_kill_stands_there_once(tmp_path: Path) -> None:
    (killed,) = scalars(tmp_path, [])
    killed.on_train_begin()
    for epoch in range(3):
        killed.on_epoch_end(epoch, {"loss": 0.5})
    (resumed,) = scalars(tmp_path, [{"epoch": 0, "loss": 0.5}])
    resumed.on_train_begin()
    resumed.on_epoch_end(1, {"loss": 0.25})
    resumed.on_train_end()
    assert read(tmp_path / "train") == {"loss": [(0, 0.5), (1, 0.25)]}
