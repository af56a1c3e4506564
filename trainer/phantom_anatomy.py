"""The heads of phantoms: a patient's anatomy, and how a slice cuts it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

SIZE = 256
FLAIR = 1

# Grey levels of a tissue in the three channels: pre-contrast T1, FLAIR, post-contrast T1.
TISSUES = {
    "fat": (138, 122, 120),
    "muscle": (52, 40, 62),
    "air": (3, 2, 3),
    "bone": (12, 10, 12),
    "marrow": (60, 42, 55),
    "csf": (17, 11, 16),
    "white": (68, 50, 63),
    "grey": (50, 64, 52),
    "folia": (54, 57, 58),
    "eye": (22, 14, 22),
    "cap": (58, 82, 56),
    "choroid": (42, 52, 118),
    "vessel": (44, 26, 132),
    "falx": (46, 40, 84),
}

Plane = npt.NDArray[np.floating]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Head:
    """One patient's anatomy: all that stays the same from slice to slice.

    `u`, `v` [256,256]: right-left and front-back place in head radii. Noise volumes are [planes,cells,cells].
    """

    u: Plane
    v: Plane
    radius: Plane
    pixels: float
    scalp: float
    skull: float
    ventricle: float
    sulcus: float
    caps: float
    foci: float
    colours: dict[str, Plane]
    folds: Plane
    texture: Plane
    detail: Plane


def draw_head(rng: np.random.Generator) -> Head:
    """One patient's anatomy, drawn by lot."""
    half_width, half_length = rng.normal(86, 6), rng.normal(109, 6)
    turn = np.deg2rad(rng.normal(0, 4))
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - (SIZE - 1) / 2
    columns -= rng.normal(0, 4)
    rows -= rng.normal(0, 5)
    u = (columns * np.cos(turn) + rows * np.sin(turn)) / half_width
    v = (rows * np.cos(turn) - columns * np.sin(turn)) / half_length
    u = u * (1 + rng.normal(0, 0.012) * np.sign(u)) / (1 + rng.uniform(0.03, 0.09) * v)
    outline = resized(rng.standard_normal((6, 6)))
    radius = np.hypot(u, v) * (1 + 0.009 * outline)
    # What lies inside is bent a little, so that no ventricle or midline is a textbook one.
    u = u + 0.011 * resized(rng.standard_normal((7, 7)))
    v = v + 0.016 * resized(rng.standard_normal((7, 7)))
    contrast = rng.uniform(0.6, 1.3)
    gain = np.exp(rng.normal(0, 0.16) + rng.normal(0, 0.15, 3))
    colours = {}
    for tissue, levels in TISSUES.items():
        grey = np.asarray(levels, np.float64)
        if tissue in ("white", "grey"):
            middle = (np.asarray(TISSUES["white"]) + np.asarray(TISSUES["grey"])) / 2
            grey = middle + contrast * (grey - middle)
        colours[tissue] = (grey * gain * np.exp(rng.normal(0, 0.05, 3))).astype(np.float32)
    colours["fat"] *= np.float32(rng.uniform(0.7, 1.25))
    return Head(
        u=u.astype(np.float32),
        v=v.astype(np.float32),
        radius=radius.astype(np.float32),
        pixels=float(np.sqrt(half_width * half_length)),
        scalp=rng.uniform(3.5, 7.5),
        skull=rng.uniform(4.5, 7.0),
        ventricle=rng.uniform(0.75, 1.35),
        sulcus=rng.uniform(0.1, 0.27),
        caps=rng.uniform(0, 0.9),
        foci=float(rng.choice([2.4, 9.0], p=[0.3, 0.7])),
        colours=colours,
        folds=rng.standard_normal((9, 26, 26)).astype(np.float32),
        texture=rng.standard_normal((7, 20, 20)).astype(np.float32),
        detail=rng.standard_normal((9, 60, 60)).astype(np.float32),
    )


def head_radius(z: float) -> float:
    """Radius of the head at height `z`, as a share of its largest: blunt above, slowly tapering below."""
    return 1 - 0.22 * z * z if z < 0 else max(0.0, 1 - z**2.5) ** (1 / 2.1)


def brain_depth(head: Head, depth: Plane, z: float) -> Plane:
    """Pixels below the brain's surface, negative outside; towards the base only some lobes are left."""
    # A slice near the vertex cuts the scalp and skull obliquely, so that they look thicker.
    brain = depth - (head.scalp + head.skull + 2.5) / np.float32(max(head_radius(z), 0.5))
    if z > 0:
        return brain
    lobes = (
        (0.0, -0.40, 0.62, 0.46, -0.34),
        (-0.45, 0.02, 0.38, 0.46, -0.56),
        (0.45, 0.02, 0.38, 0.46, -0.56),
        (0.0, 0.45, 0.62, 0.42, -0.72),
        (0.0, 0.12, 0.24, 0.30, -1.20),
    )
    inside = np.full_like(depth, -1e3)
    for u, v, width, length, lowest in lobes:
        shrink = np.sqrt(np.clip((z - lowest) / 0.32, 0, 1))
        if shrink > 0.1:
            ellipse = np.hypot((head.u - u) / width, (head.v - v) / length) / shrink
            np.maximum(inside, (1 - ellipse) * np.float32(30 * shrink), out=inside)
    # Lobes join into the whole brain over the lowest tenth below the middle.
    joined: Plane = np.minimum(brain, inside + np.float32(30 * np.clip(1 + z / 0.12, 0, 1)))
    return joined


def paint_surroundings(canvas: Plane, head: Head, depth: Plane, brain: Plane, z: float) -> None:
    """Scalp, face, eyes, skull and the fluid around the brain."""
    colours = head.colours
    detail = section(head.detail, z)
    paint(canvas, step(depth), colours["muscle"])
    paint(canvas, step(depth - 1.5) * (0.85 + 0.1 * detail), colours["fat"])
    if z < 0.05:
        face = step(depth - head.scalp)
        texture = section(head.texture, z)
        mixed = texture + 0.5 * detail
        paint(canvas, face, colours["muscle"])
        paint(canvas, face * step(3 * (mixed - 0.75)), 0.8 * colours["fat"])
        front = step(6 * (0.05 - head.v)) * step(12 * (0.3 - np.abs(head.u)))
        paint(canvas, face * step(4 * (-mixed - 0.9 + 1.1 * front)), colours["air"])
        if -0.42 < z < -0.12:
            _paint_eyes(canvas, head, face, z)
    middle = -1.2 - head.skull / 2
    paint(canvas, step(brain + head.skull + 2) * step(depth - head.scalp), colours["bone"])
    paint(canvas, np.exp(-(((brain - middle) / 1.2) ** 2)) * step(depth - head.scalp), colours["marrow"])
    paint(canvas, step(brain + 2), colours["csf"])


def _paint_eyes(canvas: Plane, head: Head, face: Plane, z: float) -> None:
    size = 0.17 * np.sqrt(1 - ((z + 0.27) / 0.16) ** 2)
    eye = np.hypot(np.abs(head.u) - 0.36, head.v + 0.66) if size > 0 else head.radius + 1
    paint(canvas, face * step(40 * (size + 0.09 - eye)), 0.9 * head.colours["fat"])
    paint(canvas, face * step(60 * (size - eye)), head.colours["eye"])


def paint_brain(canvas: Plane, head: Head, brain: Plane, z: float) -> None:
    """White matter under a folded ribbon of cortex, with fluid and vessels in the folds."""
    colours = head.colours
    inside = step(brain)
    folds = np.abs(section(head.folds, z))
    detail = section(head.detail, z)
    grain = 1 + 0.05 * section(head.texture, z) + 0.03 * detail
    paint(canvas, inside, colours["white"])
    shallow = np.clip(1.15 - brain / 26, 0, 1)
    cortex = np.maximum(step(5 * (0.62 * shallow - folds)), step(3.5 - brain))
    paint(canvas, inside * cortex, colours["grey"])
    if z < -0.05:
        cerebellum = step(14 * (head.v - 0.16)) * min(1.0, -4 * z)
        paint(canvas, inside * cerebellum * (0.7 + 0.15 * detail), colours["folia"])
    sulci = inside * step(7 * (head.sulcus * shallow - folds)) * np.clip(shallow * 1.6, 0, 1)
    paint(canvas, 0.85 * sulci, colours["csf"])
    paint(canvas, 0.8 * sulci * step(3 * (detail - 1.2)), colours["vessel"])
    if z > -0.1:
        deep = np.hypot((np.abs(head.u) - 0.25) / 0.13, head.v / 0.24)
        ganglia = inside * step(5 * (1 - deep)) * max(0.0, 1 - abs(z - 0.12) / 0.22)
        paint(canvas, ganglia, colours["grey"])
        _paint_midline(canvas, head, inside, z)
    canvas *= 1 + inside * (grain - 1)
    foci = inside * (1 - shallow) * step(3 * (detail - head.foci))
    paint(canvas, 0.7 * foci, colours["cap"])


def _paint_midline(canvas: Plane, head: Head, inside: Plane, z: float) -> None:
    """The fissure between the hemispheres, the falx in it and the sinus behind it."""
    # The corpus callosum and the ganglia join the hemispheres up to z = 0.5.
    joined = 0.42 if z < 0.5 else 0.0
    line = step(1.6 - np.abs(head.u) * head.pixels) * step(20 * (np.abs(head.v + 0.02) - joined))
    paint(canvas, 0.8 * inside * line, head.colours["csf"])
    paint(canvas, 0.45 * inside * line * step(1 - np.abs(head.u) * head.pixels), head.colours["falx"])
    edge = head_radius(z) - (head.scalp + head.skull + 4) / head.pixels
    sinus = np.hypot(head.u, 0.8 * (head.v - edge)) * head.pixels
    paint(canvas, step(3.2 - sinus), head.colours["vessel"])


def paint_ventricles(canvas: Plane, head: Head, brain: Plane, z: float) -> Plane:
    """Lateral and third ventricles with choroid plexus and thin bright caps; returns where they are, 0..1."""
    openness = np.sqrt(max(0.0, 1 - ((z - 0.24) / 0.26) ** 2)) * head.ventricle
    if openness < 0.2:
        return np.zeros_like(brain)
    side = np.abs(head.u)
    front = np.hypot((side - 0.10 - 0.12 * (-0.12 - head.v)) / (0.055 * openness), (head.v + 0.17) / 0.19)
    back = np.hypot((side - 0.17 - 0.35 * (head.v - 0.25)) / (0.065 * openness), (head.v - 0.27) / 0.20)
    third = np.hypot(head.u / (0.022 * openness), (head.v - 0.04) / 0.12)
    horns = np.minimum(front, back)
    inside = step(brain - 4)
    fluid = inside * step(5 * (1.0 - (horns if z > 0.12 else np.minimum(horns, third))))
    tips = np.clip(12 * (np.abs(head.v - 0.04) - 0.29), 0, 1)
    paint(canvas, head.caps * inside * tips * step(5 * (1.38 - horns)), head.colours["cap"])
    paint(canvas, fluid, head.colours["csf"])
    choroid = np.hypot((side - 0.19) / 0.035, (head.v - 0.27) / 0.07)
    paint(canvas, 0.8 * fluid * step(4 * (1 - choroid)), head.colours["choroid"])
    return fluid


def paint(canvas: Plane, amount: Plane, colour: Plane) -> None:
    """Blend `colour` [3] into `canvas` [3,256,256], in place, by `amount` [256,256] of 0 to 1."""
    for plane, level in zip(canvas, colour, strict=True):
        plane += amount * (level - plane)


def step(distance: Plane) -> Plane:
    """0 outside, 1 inside, with an edge one unit wide: the share of a pixel that lies inside."""
    share: Plane = np.clip(distance + np.float32(0.5), 0, 1)
    return share


def section(volume: Plane, z: float) -> Plane:
    """Smooth noise [256,256] of unit variance where height `z` cuts a volume [planes,cells,cells]."""
    place = float(np.clip((z + 1) / 2.1, 0, 1)) * (len(volume) - 1)
    below = min(int(place), len(volume) - 2)
    angle = (place - below) * np.pi / 2
    mixed = np.float32(np.cos(angle)) * volume[below] + np.float32(np.sin(angle)) * volume[below + 1]
    return resized(mixed)


def resized(cells: Plane) -> Plane:
    """Coarse noise [rows,columns] as a smooth field [256,256] of mean 0 and unit variance."""
    field = cv2.resize(cells.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return np.asarray((field - field.mean()) / field.std(), np.float32)
