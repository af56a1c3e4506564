"""Test-time flips: a model is asked of each slice and of its mirror images, and the answers are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from engine.bundle import Model
from engine.errors import UsageError
from engine.runners.base import Images, Outputs, Precision, Runner, allocate, check_images

Mirrors = Literal["none", "horizontal", "all"]

_AXES: Mapping[Mirrors, tuple[tuple[int, ...], ...]] = MappingProxyType(
    {"none": ((),), "horizontal": ((), (2,)), "all": ((), (2,), (1,), (1, 2))}
)
"""The axes of [n,256,256,...] that each copy is flipped along; the first copy is the slice as it is."""
_AVERAGED: Mapping[Model, str] = MappingProxyType(
    {"classifier": "tumor_probability", "segmenter": "mask_probability"}
)
PIECE = 16
"""Slices whose copies go to the runner together: 13 MB of them at most, whatever the caller's batch."""


@dataclass(frozen=True, slots=True)
class Flips:
    """What is averaged over: the `mirrors` by the segmenter, and with `classifier` by that one too.

    "horizontal" is the slice and its mirror image left to right; "all" adds both of them upside down.
    """

    mirrors: Mirrors = "none"
    classifier: bool = False

    def __post_init__(self) -> None:
        if self.mirrors not in _AXES:
            raise UsageError(f"--flips {self.mirrors}: choose from {', '.join(_AXES)}")
        if self.classifier and self.mirrors == "none":
            raise UsageError("--flip-classifier flips as --flips says: add --flips horizontal or --flips all")

    def copies(self, model: Model) -> int:
        """How often the model runs for a slice that it is asked of."""
        return len(_AXES[self.mirrors]) if model == "segmenter" or self.classifier else 1

    def over(self, runner: Runner, model: Model) -> Runner:
        """An open runner as it is, or one that asks it of every copy; closing that closes it."""
        return runner if self.copies(model) == 1 else FlippedRunner(runner, model, self.mirrors)


NO_FLIPS = Flips()


class FlippedRunner:
    """Gives the mean over the copies of each slice, of probabilities only: a mean of masks is no mask."""

    def __init__(self, runner: Runner, model: Model, mirrors: Mirrors) -> None:
        """Raises `ValueError` for a runner that was opened without the model's probability."""
        probability = _AVERAGED[model]
        if probability not in runner.outputs:
            raise ValueError(f"the {model}'s runner was opened without {probability}")
        self.name = runner.name
        self.version = runner.version
        self.precision: Precision = runner.precision
        self.outputs = (probability,)
        self.concurrency = runner.concurrency
        self.options: Mapping[str, str | int] = {**runner.options, "flips": mirrors}
        self._runner = runner
        self._model: Model = model
        self._axes = _AXES[mirrors]

    def infer(self, images: Images) -> Outputs:
        """See `Runner.infer`."""
        check_images(images)
        (probability,) = self.outputs
        means = allocate(self._model, self.outputs, len(images))
        for start in range(0, len(images), PIECE):
            piece = images[start : start + PIECE]
            copies = np.concatenate([np.flip(piece, axes) for axes in self._axes])
            answers = self._runner.infer(copies)[probability]
            means[probability][start : start + PIECE] = self._mean(np.split(answers, len(self._axes)))
        return means

    def _mean(self, answers: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """One mean of the copies' answers, float32 [n] or uint8 [n,256,256] that are turned back before.

        A mean between two steps of 1/255 becomes the upper one, as `mask_probability` itself is rounded.
        """
        if self._model == "classifier":
            mean: npt.NDArray[np.float32] = np.stack(answers).mean(axis=0)
            return mean
        total = np.full(answers[0].shape, len(answers) // 2, np.uint16)
        for answer, axes in zip(answers, self._axes, strict=True):
            total += np.flip(answer, axes)
        return total // np.uint16(len(answers))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)
