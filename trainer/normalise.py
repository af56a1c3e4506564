"""The normalisations that live in the graphs, as Keras layers that always compute in float32."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

IMAGENET_BGR_MEANS = (103.939, 116.779, 123.68)
"""Means of ImageNet in B, G, R order (He et al. 2015, the Caffe weights that Keras distributes)."""


@keras.saving.register_keras_serializable("tumorscan")
class SliceStandardise(keras.layers.Layer):  # type: ignore[misc]
    """(x - mean) / max(std, 1) over all values of each slice, `[N,H,W,C]` in 0..255 to float32.

    The mean and the variance are each taken in two steps, rows and then the rest: a one-step mean over
    196,608 float32 values is off by 1e-4 in some runtimes and flips mask pixels. A constant slice gives
    zeros.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, images: Any) -> Any:
        """Standardise `[N,H,W,C]` of any type."""
        values = ops.cast(images, "float32")
        centred = values - _mean(values)
        deviation = ops.sqrt(_mean(ops.square(centred)))
        return centred / ops.maximum(deviation, 1.0)


@keras.saving.register_keras_serializable("tumorscan")
class ImageNetBGR(keras.layers.Layer):  # type: ignore[misc]
    """RGB in 0..255 to BGR less the ImageNet means: what keras.applications' ResNet50 weights expect."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, images: Any) -> Any:
        """Map `[N,H,W,3]` of any type to float32."""
        bgr = ops.take(ops.cast(images, "float32"), [2, 1, 0], axis=-1)
        return bgr - ops.convert_to_tensor(IMAGENET_BGR_MEANS, dtype="float32")


@keras.saving.register_keras_serializable("tumorscan")
class UnitRange(keras.layers.Layer):  # type: ignore[misc]
    """x / 255 in float32, for a classifier trained from scratch."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, images: Any) -> Any:
        """Map `[N,H,W,C]` of any type to float32."""
        return ops.cast(images, "float32") / 255.0


def _mean(values: Any) -> Any:
    rows = ops.mean(values, axis=2, keepdims=True)
    return ops.mean(rows, axis=(1, 3), keepdims=True)
