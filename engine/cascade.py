"""Classifier, gate, segmenter over two runners on the host: pure, no I/O, many threads at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.bundle import Bundle
from engine.errors import TumorscanError, UsageError
from engine.flips import NO_FLIPS, Flips
from engine.runners.base import Images, Outputs, Runner


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where the cascade works.

    `exact_mask` takes the segmenter's own `mask`, made at the bundle's threshold; otherwise its
    `mask_probability` is compared with `mask_threshold` in steps of 1/255. Without `gated` every slice goes
    to the segmenter and its mask alone decides. `min_pixels` is judged at 256x256. `probabilities` asks for
    the `mask_probability` of every slice that the segmenter sees. `flips` are what the runners average over;
    a mask is then never the segmenter's own.
    """

    gate_threshold: float
    mask_threshold: float
    min_pixels: int
    gated: bool = True
    exact_mask: bool = True
    probabilities: bool = False
    flips: Flips = NO_FLIPS

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        *,
        gate_threshold: float | None = None,
        mask_threshold: float | None = None,
        gated: bool = True,
        probabilities: bool = False,
        flips: Flips = NO_FLIPS,
    ) -> OperatingPoint:
        """The bundle's point, or the caller's own thresholds in it; `UsageError` for one out of its range."""
        gate = bundle.gate_threshold if gate_threshold is None else gate_threshold
        mask = bundle.mask_threshold if mask_threshold is None else mask_threshold
        if not 0 <= gate <= 1:
            raise UsageError(f"--threshold {gate} is no probability: give a number from 0 to 1")
        if not 0 < mask <= 1:
            raise UsageError(f"--mask-threshold {mask} is out of range: give a number above 0, at most 1")
        exact = mask == bundle.mask_threshold and flips == NO_FLIPS
        return cls(gate, mask, bundle.min_pixels, gated, exact, probabilities, flips)

    @property
    def segmenter_outputs(self) -> tuple[str, ...]:
        """What the segmenter's runner has to give."""
        masks = ("mask", "mask_pixels") if self.exact_mask else ()
        probability = ("mask_probability",) if self.probabilities or not self.exact_mask else ()
        return (*masks, *probability)

    @property
    def mask_step(self) -> int:
        """The least `mask_probability` (0..255) that is tumour: 255 times the threshold, half rounded up.

        At least 1, as a threshold above 0 never takes in what has no probability at all.
        """
        return max(1, math.floor(255 * self.mask_threshold + 0.5))


@dataclass(frozen=True, slots=True)
class Scores:
    """What the cascade says of n slices, all at 256x256.

    `tumor_probability` is NaN for slices that were not valid. `passed` went to the segmenter; `mask_pixels`
    is 0 for all others. `masks` holds the 0/1 mask of each slice with `has_mask`, by its position, and
    `probabilities` each pixel's (255p, rounded) of those that `passed`, if asked for.
    """

    tumor_probability: npt.NDArray[np.float32]
    passed: npt.NDArray[np.bool_]
    has_mask: npt.NDArray[np.bool_]
    mask_pixels: npt.NDArray[np.int32]
    masks: dict[int, npt.NDArray[np.uint8]]
    probabilities: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cascade:
    """Two runners and the point they work at. Opening and closing the runners is the caller's."""

    classifier: Runner
    segmenter: Runner
    operating: OperatingPoint

    def __post_init__(self) -> None:
        missing = set(self.operating.segmenter_outputs) - set(self.segmenter.outputs)
        if missing:
            raise ValueError(f"the segmenter's runner was opened without {', '.join(sorted(missing))}")

    def score(self, images: Images, valid: npt.NDArray[np.bool_]) -> Scores:
        """Score the valid ones of `images` uint8 [n,256,256,3], read where they lie; `valid` is bool [n].

        Raises `TumorscanError` where a probability is not a number.
        """
        probability = self._probabilities(images, valid)
        passed = valid.copy()
        if self.operating.gated:
            passed &= probability >= np.float32(self.operating.gate_threshold)
        pixels = np.zeros(len(images), np.int32)
        masks: dict[int, npt.NDArray[np.uint8]] = {}
        probabilities: dict[int, npt.NDArray[np.uint8]] = {}
        for start, stop in _runs(passed):
            outputs = self.segmenter.infer(images[start:stop])
            found, pixels[start:stop] = self._masks(outputs)
            masks.update(zip(range(start, stop), found, strict=True))
            if self.operating.probabilities:
                probabilities.update(zip(range(start, stop), outputs["mask_probability"], strict=True))
        has_mask = passed & (pixels >= max(1, self.operating.min_pixels))
        masks = {position: mask for position, mask in masks.items() if has_mask[position]}
        return Scores(probability, passed, has_mask, pixels, masks, probabilities)

    def _probabilities(self, images: Images, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        probability = np.full(len(images), np.nan, np.float32)
        for start, stop in _runs(valid):
            probability[start:stop] = self.classifier.infer(images[start:stop])["tumor_probability"]
        if not np.isfinite(probability[valid]).all():
            raise TumorscanError(
                f"the classifier gave a tumour probability that is not a number ({self.classifier.name} "
                f"{self.classifier.version}, {self.classifier.precision}): try --precision fp32, another "
                "--backend or another --bundle"
            )
        return probability

    def _masks(self, outputs: Outputs) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Masks uint8 [n,256,256] of 0/1 and their pixels int32 [n], of what the segmenter gave."""
        if self.operating.exact_mask:
            return outputs["mask"], outputs["mask_pixels"]
        masks = (outputs["mask_probability"] >= self.operating.mask_step).astype(np.uint8)
        return masks, masks.sum(axis=(1, 2), dtype=np.int32)


def _runs(flags: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of set flags."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    for start, stop in edges.reshape(-1, 2):
        yield int(start), int(stop)
