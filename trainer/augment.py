"""Augmentation that suits MRI slices: what another head, coil or scanner could have shown."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far each change may go; every slice draws its own.

    Args:
        flip: probability of a left-right mirror (heads are nearly symmetric; up-down never happens).
        rotation: degrees to either side.
        scale: largest relative change of size.
        shift: largest move, as a fraction of the side.
        gain: largest relative change of a channel's contrast, each channel by itself.
        offset: largest added grey level, in 0..255 units, each channel by itself.
        bias_field: largest relative swing of a smooth field over the slice (coil sensitivity).
        drop_channel: probability that the pre- or post-contrast channel is replaced by FLAIR, as the data
            set does where a sequence is missing.
    """

    flip: float = 0.5
    rotation: float = 15.0
    scale: float = 0.10
    shift: float = 0.05
    gain: float = 0.15
    offset: float = 8.0
    bias_field: float = 0.15
    drop_channel: float = 0.10

    def __call__(self, image: U8, mask: U8, rng: np.random.Generator) -> tuple[U8, U8]:
        """Change `[H,W,3]` and its mask `[H,W]` together; both come back new, of the same shapes."""
        image, mask = self._move(image, mask, rng)
        image = self._shade(image, rng)
        if rng.random() < self.drop_channel:
            image[..., rng.choice((0, 2))] = image[..., 1]
        return image, mask

    def _move(self, image: U8, mask: U8, rng: np.random.Generator) -> tuple[U8, U8]:
        height, width = mask.shape
        angle = rng.uniform(-self.rotation, self.rotation)
        scale = 1.0 + rng.uniform(-self.scale, self.scale)
        centre = (width - 1) / 2, (height - 1) / 2
        matrix = np.asarray(cv2.getRotationMatrix2D(centre, angle, scale), np.float64)
        matrix[:, 2] += rng.uniform(-self.shift, self.shift, 2) * (width, height)
        if rng.random() < self.flip:
            matrix = matrix @ np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]], np.float64)
        moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
        return moved.astype(np.uint8, copy=False), cv2.warpAffine(
            mask, matrix, (width, height), flags=cv2.INTER_NEAREST
        ).astype(np.uint8, copy=False)

    def _shade(self, image: U8, rng: np.random.Generator) -> U8:
        height, width = image.shape[:2]
        channels = image.shape[2:]
        coarse = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
        field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        shaded = image.astype(np.float32)
        shaded *= (1 + self.bias_field * field)[..., None]
        shaded *= rng.uniform(1 - self.gain, 1 + self.gain, channels).astype(np.float32)
        # Only where there is signal: the background of these slices is exactly black.
        shaded += (image > 0) * rng.uniform(-self.offset, self.offset, channels).astype(np.float32)
        return np.clip(np.rint(shaded), 0, 255).astype(np.uint8)
