"""The segmenter: the article's ResUNet, which says where the tumour is."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from trainer.normalise import SliceStandardise

INPUT_SIZE = 256
STEM = 16
DOWN = (32, 64, 128)
BOTTLENECK = 256
UP = (128, 64, 32, 16)


def build_segmenter(*, momentum: float = 0.99, standardise: bool = True) -> keras.Model:
    """Build the ResUNet of 1.2 million weights.

    Args:
        momentum: of every batch normalisation; 0.99 needs hundreds of steps before its averages mean
            anything.
        standardise: put the per-slice standardisation in front (the exporter puts its own there).

    Returns:
        A model from `images` `[N,256,256,3]` (0..255, or standardised) to probabilities `[N,256,256,1]`
        float32.
    """
    images = keras.Input((INPUT_SIZE, INPUT_SIZE, 3), name="images")
    x = SliceStandardise(name="standardise")(images) if standardise else images
    for index in (1, 2):
        x = _conv(STEM, 3, f"stem_conv{index}", activation="relu")(x)
        x = layers.BatchNormalization(momentum=momentum, name=f"stem_bn{index}")(x)
    skips = [x]
    for stage, filters in enumerate(DOWN, start=2):
        x = layers.MaxPooling2D(2, name=f"down{stage}_pool")(x)
        x = _resblock(x, filters, f"down{stage}", momentum)
        skips.append(x)
    x = layers.MaxPooling2D(2, name="bottleneck_pool")(x)
    x = _resblock(x, BOTTLENECK, "bottleneck", momentum)
    for stage, filters in zip((4, 3, 2, 1), UP, strict=True):
        x = layers.UpSampling2D(2, interpolation="nearest", name=f"up{stage}_upsample")(x)
        x = layers.Concatenate(name=f"up{stage}_concat")([x, skips.pop()])
        x = _resblock(x, filters, f"up{stage}", momentum)
    logits = layers.Conv2D(1, 1, dtype="float32", name="logits")(x)
    return keras.Model(
        images, layers.Activation("sigmoid", dtype="float32", name="mask")(logits), name="resunet"
    )


def _resblock(x: Any, filters: int, name: str, momentum: float) -> Any:
    main = _conv(filters, 1, f"{name}_conv1")(x)
    main = layers.BatchNormalization(momentum=momentum, name=f"{name}_bn1")(main)
    main = layers.ReLU(name=f"{name}_relu1")(main)
    main = _conv(filters, 3, f"{name}_conv2")(main)
    main = layers.BatchNormalization(momentum=momentum, name=f"{name}_bn2")(main)
    short = _conv(filters, 1, f"{name}_short_conv")(x)
    short = layers.BatchNormalization(momentum=momentum, name=f"{name}_short_bn")(short)
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([main, short]))


def _conv(filters: int, size: int, name: str, activation: str | None = None) -> layers.Layer:
    return layers.Conv2D(
        filters, size, padding="same", activation=activation, kernel_initializer="he_normal", name=name
    )
