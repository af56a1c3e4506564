"""The lesions of phantoms, and their true masks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from trainer.phantom_anatomy import FLAIR, SIZE, Bytes, Head, Plane, head_radius, section, step

MIN_LESION_PIXELS = 80


@dataclass(frozen=True, slots=True)
class Lesion:
    """One patient's lesion: centre and axes in pixels, height and half-height in head radii."""

    x: float
    y: float
    z: float
    axes: tuple[float, float]
    turn: float
    half_height: float
    side: float
    ragged: float
    softness: float
    contrast: Plane
    rim: float
    cyst: float
    outline: Plane


def draw_lesion(rng: np.random.Generator, head: Head, spacing: float) -> Lesion:
    """One patient's lesion, drawn by lot; `spacing` is the distance of slices in head radii."""
    z = rng.uniform(-0.08, 0.66)
    reach = 0.8 * head_radius(z)
    side = float(rng.choice([-1, 1]))
    u, v = side * rng.uniform(0.28, 0.66) * reach, rng.uniform(-0.62, 0.55) * reach
    y, x = np.unravel_index(np.argmin(np.hypot(head.u - u, head.v - v)), head.u.shape)
    size = float(np.clip(28.5 * np.exp(rng.normal(0, 0.38)), 12, 46))
    stretch = np.exp(rng.normal(0, 0.18))
    flair = np.clip(rng.normal(1.53, 0.22), 1.22, 2.2)
    return Lesion(
        x=float(x),
        y=float(y),
        z=z,
        axes=(size * stretch, size / stretch),
        turn=rng.uniform(0, np.pi),
        half_height=spacing * rng.uniform(3.0, 6.4),
        side=side,
        ragged=rng.uniform(0.1, 0.28),
        softness=rng.uniform(1.5, 5.0),
        contrast=np.asarray([rng.uniform(0.62, 0.98), flair, rng.uniform(0.62, 1.02)], np.float32),
        rim=rng.uniform(0.4, 1.3) if rng.random() < 0.3 else 0.0,
        cyst=rng.uniform(0.3, 0.5) if rng.random() < 0.2 else 0.0,
        outline=rng.standard_normal((7, 17, 17)).astype(np.float32),
    )


def paint_lesion(canvas: Plane, head: Head, lesion: Lesion, brain: Plane, spared: Plane, z: float) -> Bytes:
    """Blend the lesion in where this slice cuts it; returns its mask [256,256] of 0/255."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    offset = (z - lesion.z) / lesion.half_height
    if abs(offset) >= 1:
        return mask
    cut = np.float32(np.sqrt(1 - offset * offset))
    distance = _lesion_distance(lesion, cut, z)
    size = np.float32(np.sqrt(lesion.axes[0] * lesion.axes[1]))
    same_side = step(head.u * lesion.side * head.pixels - 2)
    amount = np.clip((cut - distance) * size / lesion.softness + 0.5, 0, 1)
    amount *= step(brain - 2) * same_side * (1 - spared)
    _, parts, found, _ = cv2.connectedComponentsWithStats((amount > 0.5).astype(np.uint8), connectivity=4)
    if len(found) < 2 or found[1:, cv2.CC_STAT_AREA].max() < MIN_LESION_PIXELS:
        return mask
    mask[parts == 1 + int(np.argmax(found[1:, cv2.CC_STAT_AREA]))] = 255
    amount *= cv2.blur(cv2.dilate(mask, np.ones((5, 5), np.uint8)), (3, 3)) / np.float32(255)
    tissue = 0.5 * (head.colours["white"] + head.colours["grey"])
    shade = 1 + 0.1 * section(head.texture, z)
    core = step(5 * (lesion.cyst * cut - distance))
    ring = np.exp(-(((distance - 0.72 * cut) / 0.13) ** 2)) * np.float32(lesion.rim)
    for channel, plane in enumerate(canvas):
        level = tissue[channel] * lesion.contrast[channel] * (shade if channel == FLAIR else 2 - shade)
        if lesion.cyst:
            level = level + core * (0.8 * head.colours["csf"][channel] - 0.55 * level)
        if channel > FLAIR:
            level = level + tissue[channel] * ring
        plane += 0.9 * amount * (level - plane)
    return mask


def _lesion_distance(lesion: Lesion, cut: np.float32, z: float) -> Plane:
    """Distance from the lesion's axis in lesion radii, made ragged by noise [256,256]."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    x, y = columns - lesion.x, rows - lesion.y
    cosine, sine = np.float32(np.cos(lesion.turn)), np.float32(np.sin(lesion.turn))
    distance = np.hypot((x * cosine + y * sine) / lesion.axes[0], (y * cosine - x * sine) / lesion.axes[1])
    ragged: Plane = distance + np.float32(lesion.ragged) * cut * section(lesion.outline, z)
    return ragged.astype(np.float32)
