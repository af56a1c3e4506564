"""Batches of slices for Keras: the loader that the article left to its readers."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.errors import UsageError
from trainer.augment import Augmentation
from trainer.cache import INPUT_SIZE, SliceCache


class SliceBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of `(images, masks)` or `(images, classes)` from a frame of `trainer.dataset.load_frame`.

    Args:
        frame: columns image_path, mask_path, mask.
        target: "mask" gives `[B,256,256,1]` float32 of 0/1, "class" gives one-hot `[B,2]` float32, tumour
            second.
        batch_size: slices a batch; the last batch holds what is left.
        shuffle: another order each epoch, the same for the same seed and epoch.
        negatives: of the tumour-free slices, the share that an epoch holds, others each epoch.
        augmentation: applied to each slice anew each epoch, or None.
        standardise: give float32 images with (x - mean) / max(std, 1) a slice, for models that do not
            standardise in the graph as ours do; otherwise uint8.
        seed: of order, draw and augmentation.
        cache: where slices are read, and kept; without it each is read anew each epoch.
        workers: threads that make batches ahead; what they make does not depend on their number.

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
        negatives: float = 1.0,
        augmentation: Augmentation | None = None,
        standardise: bool = False,
        seed: int = 0,
        cache: SliceCache | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__(workers=workers)
        self.images: list[str] = frame["image_path"].tolist()
        self.masks: list[str] = frame["mask_path"].tolist()
        self.labels: npt.NDArray[np.int64] = frame["mask"].to_numpy(np.int64)
        self.target = target
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.negatives = negatives
        self.augmentation = augmentation
        self.standardise = standardise
        self.seed = seed
        self.cache = cache or SliceCache()
        self.begin_epoch(0)
        if not len(self.order):
            raise UsageError("no slices to make batches of: the chosen part of the data is empty")

    def begin_epoch(self, epoch: int) -> None:
        """Set the slices, their order and the augmentation of an epoch, counted from 0."""
        self.epoch = epoch
        rng = np.random.default_rng((self.seed, epoch))
        self.order = np.arange(len(self.images))
        if self.negatives < 1:
            clear = np.flatnonzero(self.labels == 0)
            drawn = rng.choice(clear, round(self.negatives * len(clear)), replace=False)
            self.order = np.sort(np.concatenate([np.flatnonzero(self.labels), drawn]))
        if self.shuffle:
            rng.shuffle(self.order)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        images = np.zeros((len(chosen), INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        masks = np.zeros((len(chosen), INPUT_SIZE, INPUT_SIZE), np.uint8)
        for position, which in enumerate(chosen):
            images[position] = self.cache.image(self.images[which])
            if self.target == "mask" and self.labels[which]:
                masks[position] = self.cache.mask(self.masks[which])
            if self.augmentation is not None:
                rng = np.random.default_rng((self.seed, self.epoch, int(which)))
                images[position], masks[position] = self.augmentation(images[position], masks[position], rng)
        pixels = standardise(images) if self.standardise else images
        if self.target == "mask":
            return pixels, masks.astype(np.float32)[..., None]
        return pixels, np.eye(2, dtype=np.float32)[self.labels[chosen]]


def standardise(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(x - mean) / max(std, 1) of each slice of `[N,H,W,C]`: the reference for the layer in the graph."""
    values = images.astype(np.float64)
    mean = values.mean(axis=(1, 2, 3), keepdims=True)
    deviation = values.std(axis=(1, 2, 3), keepdims=True)
    return np.asarray((values - mean) / np.maximum(deviation, 1.0), np.float32)
