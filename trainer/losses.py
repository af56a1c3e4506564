"""Losses and metrics of the segmenter, in keras.ops: they name no backend."""

from __future__ import annotations

from collections.abc import Callable
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


def tversky_index(y_true: Any, y_pred: Any, alpha: float = ALPHA) -> Any:
    """Tversky index of a whole batch: (tp+s) / (tp + alpha fn + (1-alpha) fp + s), in float32.

    Args:
        y_true: masks of 0 and 1, any shape.
        y_pred: probabilities, the same shape.
        alpha: weight of a missed pixel.

    Returns:
        A float32 scalar in (0, 1]. Source: Salehi et al. 2017, arXiv:1706.05721.
    """
    truth = ops.reshape(ops.cast(y_true, "float32"), (-1,))
    guess = ops.reshape(ops.cast(y_pred, "float32"), (-1,))
    hit = ops.sum(truth * guess)
    missed = ops.sum(truth) - hit
    false = ops.sum(guess) - hit
    return (hit + SMOOTH) / (hit + alpha * missed + (1.0 - alpha) * false + SMOOTH)


def focal_tversky(alpha: float = ALPHA) -> Callable[[Any, Any], Any]:
    """The focal Tversky loss of a batch, (1-T)**0.75 with 1-T floored at 1e-7 (arXiv:1810.07842)."""

    def loss(y_true: Any, y_pred: Any) -> Any:
        return ops.power(ops.maximum(1.0 - tversky_index(y_true, y_pred, alpha), FLOOR), GAMMA)

    return loss


def tversky_bce(alpha: float = ALPHA, bce_weight: float = 1.0) -> Callable[[Any, Any], Any]:
    """(1-T) + bce_weight x binary cross-entropy, the latter as the mean over all pixels of the batch.

    A region loss beside a pixel loss, as nnU-Net sums Dice and cross-entropy (Isensee et al. 2021,
    doi:10.1038/s41592-020-01008-z) and as studied by Taghanaki et al. 2019 (arXiv:1805.02798). The second
    gives a pixel of a batch without tumour a gradient, where T is 0 whatever the amount of false pixels.
    """

    def loss(y_true: Any, y_pred: Any) -> Any:
        truth, guess = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
        pixels = ops.mean(ops.binary_crossentropy(truth, guess))
        return 1.0 - tversky_index(truth, guess, alpha) + bce_weight * pixels

    return loss


@keras.saving.register_keras_serializable("tumorscan")  # type: ignore[untyped-decorator]
def tversky(y_true: Any, y_pred: Any) -> Any:
    """The Tversky index as a metric: 1 is a perfect batch."""
    return tversky_index(y_true, y_pred)


@keras.saving.register_keras_serializable("tumorscan")
class PooledDice(keras.metrics.Metric):  # type: ignore[misc]
    """Dice of all pixels seen since the last reset, pooled, masks cut at probability 0.5.

    Other than the mean of a loss over batches it does not depend on which slices stand in a batch together.
    """

    def __init__(self, name: str = "dice", **kwargs: Any) -> None:
        super().__init__(name=name, **{**kwargs, "dtype": "float32"})
        self.hits = self.add_weight(name="hits", initializer="zeros")
        self.pixels = self.add_weight(name="pixels", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:  # noqa: ARG002
        """Count a batch of masks of 0 and 1 and of probabilities, of one shape."""
        truth = ops.cast(y_true, "float32")
        mask = ops.cast(ops.cast(y_pred, "float32") >= 0.5, "float32")
        self.hits.assign_add(ops.sum(truth * mask))
        self.pixels.assign_add(ops.sum(truth) + ops.sum(mask))

    def result(self) -> Any:
        """A float32 scalar in 0..1; 1 where truth and masks are both empty."""
        return (2.0 * self.hits + SMOOTH) / (self.pixels + SMOOTH)
