"""Augmentation that suits MRI slices: what another head, coil or scanner could have shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

ELASTIC_KNOTS = 6
"""Knots to a side of the displacement field: bumps of a fifth of the slice, not of single gyri."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far each change may go; every slice draws its own.

    Args:
        flip: probability of a left-right mirror (heads are nearly symmetric; up-down never happens).
        rotation: degrees to either side.
        scale: largest relative change of size.
        shift: largest move, as a fraction of the side.
        elastic: standard deviation of a smooth random displacement, in pixels (Simard et al. 2003; on a
            coarse grid as in Ronneberger et al. 2015, arXiv:1505.04597).
        gain: largest relative change of a channel's contrast, each channel by itself.
        gamma: largest exponent of grey levels, and one over it the smallest; each channel by itself.
        offset: largest added grey level, in 0..255 units, each channel by itself.
        bias_field: largest relative swing of a smooth field over the slice (coil sensitivity).
        drop_channel: probability that the pre- or post-contrast channel is replaced by FLAIR, as the data
            set does where a sequence is missing.
    """

    flip: float = 0.5
    rotation: float = 15.0
    scale: float = 0.10
    shift: float = 0.05
    elastic: float = 0.0
    gain: float = 0.15
    gamma: float = 1.0
    offset: float = 8.0
    bias_field: float = 0.15
    drop_channel: float = 0.10

    def __call__(self, image: U8, mask: U8, rng: np.random.Generator) -> tuple[U8, U8]:
        """Change `[H,W,3]` and its mask `[H,W]` of 0/1 together; both come back new, of the same shapes."""
        image, mask = self._move(image, mask, rng)
        image = self._shade(image, rng)
        if rng.random() < self.drop_channel:
            image[..., rng.choice((0, 2))] = image[..., 1]
        return image, mask

    def _move(self, image: U8, mask: U8, rng: np.random.Generator) -> tuple[U8, U8]:
        height, width = mask.shape
        matrix = self._affine(height, width, rng)
        x, y = _grid(height, width)
        # Where in the source each pixel comes from.
        from_x: F32 = matrix[0, 0] * x + (matrix[0, 1] * y + matrix[0, 2])
        from_y: F32 = matrix[1, 0] * x + (matrix[1, 1] * y + matrix[1, 2])
        if self.elastic:
            knots = rng.normal(0, self.elastic, (2, ELASTIC_KNOTS, ELASTIC_KNOTS)).astype(np.float32)
            for source, knot in ((from_x, knots[0]), (from_y, knots[1])):
                cv2.add(source, cv2.resize(knot, (width, height), interpolation=cv2.INTER_CUBIC), dst=source)
        # The mask rides along as a fourth channel: one remap, and OpenCV is faster at four than at three.
        both = cv2.remap(cv2.merge((image, mask * np.uint8(255))), from_x, from_y, cv2.INTER_LINEAR)
        moved = np.ascontiguousarray(both[..., :3], np.uint8)
        return moved, (both[..., 3] >= 128).astype(np.uint8)

    def _affine(self, height: int, width: int, rng: np.random.Generator) -> F32:
        """The `[2,3]` matrix from pixels of the result to pixels of the source."""
        angle = rng.uniform(-self.rotation, self.rotation)
        scale = 1.0 + rng.uniform(-self.scale, self.scale)
        centre = (width - 1) / 2, (height - 1) / 2
        matrix = np.asarray(cv2.getRotationMatrix2D(centre, angle, 1 / scale), np.float64)
        matrix[:, 2] += rng.uniform(-self.shift, self.shift, 2) * (width, height)
        if rng.random() < self.flip:
            matrix = np.array([[-1, 0, width - 1], [0, 1, 0]]) @ np.vstack([matrix, [0, 0, 1]])
        return matrix.astype(np.float32)

    def _shade(self, image: U8, rng: np.random.Generator) -> U8:
        height, width, channels = image.shape
        curves = self._curves(channels, rng)
        # Clipped only at the end: a curve may lift a level above 255 that the field lowers again.
        shaded = np.empty(image.shape, np.float32)
        coarse = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
        field = 1 + self.bias_field * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        for channel in range(channels):
            shaded[..., channel] = curves[channel][image[..., channel]] * field
        return cv2.convertScaleAbs(shaded).astype(np.uint8, copy=False)

    def _curves(self, channels: int, rng: np.random.Generator) -> F32:
        """`[C,256]`: the grey level that each one becomes. Black stays black: it is the slices' ground."""
        levels = np.arange(256, dtype=np.float32) / 255
        swing = np.log(self.gamma)
        gamma = np.exp(rng.uniform(-swing, swing, channels)).astype(np.float32)
        gain = rng.uniform(1 - self.gain, 1 + self.gain, channels).astype(np.float32)
        offset = rng.uniform(-self.offset, self.offset, channels).astype(np.float32)
        curves = 255 * gain[:, None] * levels ** gamma[:, None] + offset[:, None]
        curves[:, 0] = 0
        return np.maximum(curves, 0)


AUGMENTATIONS: Mapping[str, Augmentation | None] = MappingProxyType(
    {
        "none": None,
        "light": Augmentation(),
        "full": Augmentation(
            rotation=20.0, scale=0.15, shift=0.08, elastic=3.0, gain=0.2, gamma=1.4, bias_field=0.25
        ),
    }
)
"""The strengths that `--augmentation` names."""


@lru_cache(maxsize=4)
def _grid(height: int, width: int) -> tuple[F32, F32]:
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    return np.broadcast_to(x, (height, width)), y[:, None]
