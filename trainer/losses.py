"""Losses and metrics of the segmenter, in keras.ops: they name no backend."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

ALPHA = 0.7
"""Weight of a missed pixel against a false one (Abraham and Khan 2019, arXiv:1810.07842)."""
GAMMA = 0.75
"""Exponent of the focal form, as the article uses it (4/3 inverted in Abraham and Khan)."""
SMOOTH = 1e-6
FLOOR = 1e-7
"""Smallest 1-T: the gradient of (1-T)**0.75 is infinite at T = 1."""


def tversky_index(y_true: Any, y_pred: Any) -> Any:
    """Tversky index of a whole batch: (tp+s) / (tp + 0.7 fn + 0.3 fp + s), in float32.

    Args:
        y_true: masks of 0 and 1, any shape.
        y_pred: probabilities, the same shape.

    Returns:
        A float32 scalar in (0, 1]. Source: Salehi et al. 2017, arXiv:1706.05721.
    """
    truth = ops.reshape(ops.cast(y_true, "float32"), (-1,))
    guess = ops.reshape(ops.cast(y_pred, "float32"), (-1,))
    hit = ops.sum(truth * guess)
    missed = ops.sum(truth) - hit
    false = ops.sum(guess) - hit
    return (hit + SMOOTH) / (hit + ALPHA * missed + (1.0 - ALPHA) * false + SMOOTH)


@keras.saving.register_keras_serializable("tumorscan")  # type: ignore[untyped-decorator]
def focal_tversky(y_true: Any, y_pred: Any) -> Any:
    """Focal Tversky loss of a batch, (1-T)**0.75 with 1-T floored at 1e-7 (arXiv:1810.07842)."""
    return ops.power(ops.maximum(1.0 - tversky_index(y_true, y_pred), FLOOR), GAMMA)


@keras.saving.register_keras_serializable("tumorscan")  # type: ignore[untyped-decorator]
def tversky(y_true: Any, y_pred: Any) -> Any:
    """The Tversky index as a metric: 1 is a perfect batch."""
    return tversky_index(y_true, y_pred)
