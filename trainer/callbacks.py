"""What happens between epochs: a run that is killed at any of them goes on as if it had not been."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from trainer.loader import SliceBatches


class EpochOrder(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells the loader which epoch begins, so that a resumed run sees the order it would have seen."""

    def __init__(self, batches: SliceBatches) -> None:
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Set the order of this epoch."""
        self.batches.begin_epoch(epoch)


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
        rate = float(self.model.optimizer.learning_rate.numpy())
        for epoch, row in enumerate(self.past):
            for callback in self.callbacks:
                callback.on_epoch_end(epoch, dict(row))
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


def cosine(epochs: int, peak: float) -> Callable[[int, float], float]:
    """Learning rate by epoch: half the peak in the first (warm-up), then a cosine that ends at 2% of it."""

    def rate(epoch: int, _current: float) -> float:
        if epoch == 0 and epochs > 2:
            return peak / 2
        return peak * (0.02 + 0.98 * (1 + math.cos(math.pi * epoch / epochs)) / 2)

    return rate


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


def has_stopped(past: Sequence[dict[str, float]], patience: int) -> bool:
    """Whether EarlyStopping had ended the training: Keras would go on for an epoch before it noticed."""
    best, waited = math.inf, 0
    for row in past:
        better = row["val_loss"] < best
        best, waited = (row["val_loss"], 0) if better else (best, waited + 1)
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
