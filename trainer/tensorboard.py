"""An epoch's figures for TensorBoard, by its own writer: no TensorFlow is needed, whatever Keras runs on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras


def scalars(folder: Path, past: Sequence[dict[str, float]]) -> list[keras.callbacks.Callback]:
    """The callback that writes into `folder`, or none where the package tensorboard is not installed.

    Args:
        folder: of the event files; those of a killed run give way to the epochs that history.csv kept.
        past: the rows of these epochs.
    """
    if importlib.util.find_spec("tensorboard") is None:
        return []
    return [Scalars(folder, past)]


class Scalars(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes each figure of each epoch as a scalar; training and validation share a chart."""

    def __init__(self, folder: Path, past: Sequence[dict[str, float]]) -> None:
        super().__init__()
        self.folder = folder
        self.past = past
        self.writers: dict[str, Any] = {}

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Write the epochs of before anew: an epoch that is run again would stand there twice."""
        writer = importlib.import_module("tensorboard.summary").Writer
        for part in ("train", "validation"):
            for old in (self.folder / part).glob("events.out.tfevents.*"):
                old.unlink()
            self.writers[part] = writer(str(self.folder / part))
        for row in self.past:
            self._write(int(row["epoch"]), {name: row[name] for name in row if name != "epoch"})

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write an epoch, so that it can be seen at once."""
        self._write(epoch, dict(logs or {}))

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Close the files."""
        for writer in self.writers.values():
            writer.close()

    def _write(self, epoch: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            part = "validation" if name.startswith("val_") else "train"
            self.writers[part].add_scalar(name.removeprefix("val_"), value, epoch)
        for writer in self.writers.values():
            writer.flush()
