"""Models that compute nothing, for what everything else costs: the real pipeline runs on them unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self
from unittest.mock import patch

import cv2
import numpy as np

from engine.bundle import Bundle, Model
from engine.pipeline import WRITERS
from engine.runners.base import DEFAULT_OUTPUTS, SIDE, Images, Outputs, Precision

PASSES: Final = 0.35
"""The share of slices that the null classifier lets through: that of tumour slices in the LGG set."""
_SAMPLED: Final = slice(16, None, 32)
"""Rows and columns whose pixels are hashed: 64 of a slice, as the models that stand here take no CPU."""
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_MASK_SHARE: Final = 0.023
"""Of the image, that the null mask covers: the median of the LGG set's true masks."""


class NullRunner:
    """Answers at once: a probability of 0 or 1 by a hash of the slice, or the same drawn mask."""

    name = "null"
    version = "1"
    precision: Precision = "fp32"
    concurrency = 2
    options: Mapping[str, str | int] = {}

    def __init__(self, model: Model, outputs: tuple[str, ...] | None = None) -> None:
        self.outputs = outputs or DEFAULT_OUTPUTS[model]
        self._mask = _blob()

    def infer(self, images: Images) -> Outputs:
        n = len(images)
        masks = np.broadcast_to(self._mask, (n, SIDE, SIDE))
        answers: Outputs = {}
        for name in self.outputs:
            if name == "tumor_probability":
                answers[name] = hashed_share(images) < PASSES
            elif name == "mask_pixels":
                answers[name] = np.full(n, self._mask.sum(), np.int32)
            else:
                answers[name] = masks if name == "mask" else masks * np.uint8(255)
        return answers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


@contextmanager
def null_models() -> Iterator[None]:
    """Have every run of this process, while entered, open null models in place of the bundle's.

    Their masks are drawn as those of a GPU are: in processes.
    """

    def opened(
        backend: str,
        bundle: Bundle,
        model: Model,
        precision: Precision = "fp32",
        *,
        outputs: tuple[str, ...] | None = None,
        **_: object,
    ) -> NullRunner:
        del backend, bundle, precision
        return NullRunner(model, outputs)

    with patch("engine.opening.open_runner", opened), patch("engine.opening._ON_HOST", WRITERS):
        yield


def hashed_share(images: Images) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A number from 0 to 1 for each of [n,256,256,3], by a hash of some of its pixels."""
    sample = images[:, _SAMPLED, _SAMPLED].reshape(len(images), -1).astype(np.uint64)
    weights = np.arange(1, sample.shape[1] + 1, dtype=np.uint64) * _MULTIPLIER
    hashes = (sample * weights).sum(axis=1) * _MULTIPLIER
    shares: np.ndarray[tuple[int], np.dtype[np.float64]] = hashes.astype(np.float64) / 2.0**64
    return shares


def _blob() -> Images:
    """A lesion's mask, 0/1 [256,256]: an ellipse with an uneven edge, so that its PNG is not too small."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radius = np.sqrt(_MASK_SHARE / np.pi) * SIDE
    edge = radius * (1 + 0.15 * np.sin(3 * angles) + 0.08 * np.sin(11 * angles))
    points = np.stack([110 + 1.3 * edge * np.cos(angles), 140 + edge / 1.3 * np.sin(angles)], axis=1)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(mask, [points.round().astype(np.int32)], (1,))
    return mask
