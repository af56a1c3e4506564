"""Batches of slices for Keras: the loader that the article left to its readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import cv2
import keras
import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.errors import SliceError, UsageError
from engine.sources.geometry import place
from engine.sources.read import decode_slice
from trainer.augment import Augmentation
from trainer.dataset import read_mask

INPUT_SIZE = 256


class SliceBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of `(images, masks)` or `(images, classes)` from a frame of `trainer.dataset.load_frame`.

    Args:
        frame: columns image_path, mask_path, mask.
        target: "mask" gives `[B,256,256,1]` float32 of 0/1, "class" gives one-hot `[B,2]` float32, tumour
            second.
        batch_size: slices a batch; the last batch holds what is left.
        shuffle: another order each epoch, the same for the same seed and epoch.
        augmentation: applied to each slice anew each epoch, or None.
        standardise: give float32 images with (x - mean) / max(std, 1) a slice, for models that do not
            standardise in the graph as ours do; otherwise uint8.
        seed: of order and augmentation.

    Images are `[B,256,256,3]`, RGB, decoded and resized as `tumorscan score` does (aspect kept, padded
    with 0). A slice or mask that cannot be read raises UsageError.
    A run that resumes sets `epoch` first, so that it sees what it would have seen.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        *,
        target: Literal["mask", "class"],
        batch_size: int = 16,
        shuffle: bool = False,
        augmentation: Augmentation | None = None,
        standardise: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if frame.empty:
            raise UsageError("no slices to make batches of: the chosen part of the data is empty")
        self.images: list[str] = frame["image_path"].tolist()
        self.masks: list[str] = frame["mask_path"].tolist()
        self.labels: list[int] = frame["mask"].tolist()
        self.target = target
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augmentation = augmentation
        self.standardise = standardise
        self.seed = seed
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Set the order and the augmentation of an epoch, counted from 0."""
        self.epoch = epoch
        self.order = np.arange(len(self.images))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(self.order)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        images = np.zeros((len(chosen), INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        masks = np.zeros((len(chosen), INPUT_SIZE, INPUT_SIZE), np.uint8)
        for position, which in enumerate(chosen):
            images[position] = self._read_image(self.images[which])
            if self.target == "mask" and self.labels[which]:
                masks[position] = self._read_mask(self.masks[which])
            if self.augmentation is not None:
                rng = np.random.default_rng((self.seed, self.epoch, int(which)))
                images[position], masks[position] = self.augmentation(images[position], masks[position], rng)
        pixels = standardise(images) if self.standardise else images
        if self.target == "mask":
            return pixels, (masks > 0).astype(np.float32)[..., None]
        return pixels, np.eye(2, dtype=np.float32)[[self.labels[which] for which in chosen]]

    @staticmethod
    def _read_image(path: str) -> npt.NDArray[np.uint8]:
        out = np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        try:
            decode_slice(Path(path).read_bytes(), out)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
        except SliceError as error:
            raise UsageError(f"{path}: {error}; or remove it and its mask") from error
        return out

    @staticmethod
    def _read_mask(path: str) -> npt.NDArray[np.uint8]:
        mask = read_mask(path)
        spot = place(mask.shape[0], mask.shape[1], INPUT_SIZE)
        out = np.zeros((INPUT_SIZE, INPUT_SIZE), np.uint8)
        out[spot.top : spot.top + spot.height, spot.left : spot.left + spot.width] = cv2.resize(
            mask.astype(np.uint8), (spot.width, spot.height), interpolation=cv2.INTER_NEAREST_EXACT
        )
        return out


def standardise(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(x - mean) / max(std, 1) of each slice of `[N,H,W,C]`: the reference for the layer in the graph."""
    values = images.astype(np.float64)
    mean = values.mean(axis=(1, 2, 3), keepdims=True)
    deviation = values.std(axis=(1, 2, 3), keepdims=True)
    return np.asarray((values - mean) / np.maximum(deviation, 1.0), np.float32)
