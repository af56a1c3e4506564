"""What happens between epochs: a run that is killed at any of them goes on as if it had not been."""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainer.loader import SliceBatches


class EpochOrder(keras.callbacks.Callback):  # type: ignore[misc]
    """Sets what chance decides in an epoch, so that a resumed run sees what it would have seen.

    That is the loader's order and augmentation, and the drop-out, whose state no weights file holds.
    """

    def __init__(self, batches: SliceBatches) -> None:
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Set the order and the seeds of this epoch."""
        self.batches.begin_epoch(epoch)
        for number, layer in enumerate(self.model.layers):
            if isinstance(layer, keras.layers.Dropout):
                seed = np.random.SeedSequence((self.batches.seed, epoch, number)).generate_state(1)[0]
                # As SeedGenerator keeps it: the seed, and how often it was drawn from.
                layer.seed_generator.state.assign(np.array([seed >> 1, 0], np.int64))


class Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """Adds to an epoch's figures its learning rate at the end and the seconds that its steps took.

    `cpu_seconds` are those of all threads since the epoch before, validation counted in.

    Args:
        cpu: False for a training whose history.csv was begun without them: its columns stay.
    """

    def __init__(self, *, cpu: bool = True) -> None:
        super().__init__()
        self.cpu = cpu
        self.begun = self.stepped = self.spent = 0.0

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Start counting."""
        self.spent = time.process_time()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Start."""
        self.begun = self.stepped = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Stop, until the next step."""
        self.stepped = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Add both to the figures, which callbacks further down the list see."""
        before, self.spent = self.spent, time.process_time()
        if logs is not None:
            logs["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
            logs["seconds"] = round(self.stepped - self.begun, 2)
            if self.cpu:
                logs["cpu_seconds"] = round(self.spent - before, 2)


class ReplayHistory(keras.callbacks.Callback):  # type: ignore[misc]
    """Shows the finished epochs to callbacks that Keras does not restore (patience, plateaus).

    Stands behind BackupAndRestore in the list, which has restored the weights and the learning rate by then.
    """

    def __init__(
        self, past: Sequence[dict[str, float]], callbacks: Sequence[keras.callbacks.Callback]
    ) -> None:
        super().__init__()
        self.past = past
        self.callbacks = callbacks

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Replay, then put back the learning rate, which a replayed plateau would lower twice."""
        plateaus = [each for each in self.callbacks if isinstance(each, keras.callbacks.ReduceLROnPlateau)]
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)) if plateaus else 0.0
        for epoch, row in enumerate(self.past):
            for callback in self.callbacks:
                callback.on_epoch_end(epoch, dict(row))
        if plateaus:
            self.model.optimizer.learning_rate = rate


class Report(keras.callbacks.Callback):  # type: ignore[misc]
    """Hands each step and each finished epoch to whoever shows progress."""

    def __init__(
        self, on_step: Callable[[int, int], None], on_epoch: Callable[[int, dict[str, float]], None]
    ) -> None:
        super().__init__()
        self.on_step = on_step
        self.on_epoch = on_epoch
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Remember the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Pass the step on."""
        self.on_step(self.epoch, batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Pass the epoch's figures on."""
        self.on_epoch(epoch, dict(logs or {}))


def next_epoch(backup: Path) -> int:
    """The epoch that a training goes on with; a backup that was cut off gives way to the one before it.

    BackupAndRestore copies the last pair to *.bkp, writes the weights, then the epoch: a kill between these
    leaves weights without their epoch, which it would take for those of the epoch before.

    Args:
        backup: the folder that BackupAndRestore writes, with `double_checkpoint`; it may not be there yet.
    """
    pair = backup / "latest.weights.h5", backup / "training_metadata.json"
    if not _belong_together(*pair):
        for path in pair:
            before = path.with_name(f"{path.name}.bkp")
            if before.exists():
                shutil.copyfile(before, path)
            else:
                path.unlink(missing_ok=True)
    return int(json.loads(pair[1].read_text())["epoch"]) if pair[1].exists() else 0


def _belong_together(weights: Path, metadata: Path) -> bool:
    if not (weights.exists() and metadata.exists()):
        return False
    if metadata.stat().st_mtime_ns < weights.stat().st_mtime_ns:
        return False
    try:
        json.loads(metadata.read_text())
    except ValueError:
        return False
    return True


def has_stopped(
    past: Sequence[dict[str, float]], patience: int, monitor: str = "val_loss", *, highest: bool = False
) -> bool:
    """Whether EarlyStopping had ended the training: Keras would go on for an epoch before it noticed."""
    best, waited = math.inf, 0
    for row in past:
        figure = -row[monitor] if highest else row[monitor]
        best, waited = (figure, 0) if figure < best else (best, waited + 1)
    return waited >= patience


def read_history(path: Path, before: int | None = None) -> list[dict[str, float]]:
    """The rows of a history.csv, an epoch each; an epoch that was run twice after a kill counts once.

    Args:
        path: the file; a missing or empty one gives no rows.
        before: only epochs below this number.
    """
    if not path.exists():
        return []
    rows: dict[int, dict[str, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            values = {name: float(text) for name, text in row.items() if name and text not in (None, "")}
            if "epoch" in values and len(values) == len(row):
                rows[int(values["epoch"])] = values
    return [rows[epoch] for epoch in sorted(rows) if before is None or epoch < before]


def rewrite_history(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows back, all or nothing, so that appending goes on after the last whole epoch."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "epoch": int(row["epoch"])})
    partial.replace(path)
