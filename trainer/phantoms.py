"""Synthetic MRI-like slices with true masks, for tests, demonstrations and people without data.

Phantoms are drawings, not simulated physics: ellipses, thresholded noise and blur whose grey levels, head
size and lesion areas were set by eye and by a few statistics to resemble the LGG set (Buda et al.). Nothing
measured on them says anything about patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from engine.errors import MachineError, UsageError

SIZE = 256
INSTITUTIONS = ("AX", "BN", "CV", "DM", "ER")
LESION_PATIENTS = 0.86
MIN_LESION_PIXELS = 80
FLAIR = 1
# Channels that a patient lacks and FLAIR stands in for, as in the LGG set, and how often that happens.
MISSING: tuple[tuple[int, ...], ...] = ((), (0, 2), (0,), (2,))
MISSING_SHARES = (0.86, 0.08, 0.03, 0.03)

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
class PhantomSet:
    """What was written: the kaggle_3m folder `root`, and counts of slices and patients."""

    root: Path
    slices: int
    lesion_slices: int
    patients: int


@dataclass(frozen=True, slots=True)
class _Head:
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


@dataclass(frozen=True, slots=True)
class _Lesion:
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


@dataclass(frozen=True, slots=True)
class _Scanner:
    """One patient's imaging: bias field [3,256,256], blur and noise in pixels and grey levels."""

    bias: Plane
    blur: float
    noise: float
    floor: float
    missing: tuple[int, ...]


def write_phantoms(
    dest: Path, count: int, seed: int, progress: Callable[[int], None] | None = None
) -> PhantomSet:
    """Draw `count` slices and their true masks as a kaggle_3m tree below `dest`.

    Files are DEST/kaggle_3m/PHANTOM_XX_0001/PHANTOM_XX_0001_1.tif (256x256x3 uint8, RGB: pre-contrast, FLAIR,
    post-contrast) and ..._1_mask.tif (256x256 uint8, 0 or 255), uncompressed. A patient has 18 to 24 slices
    from the neck up to the vertex; the last one is cut short. Patient 0001 always has a lesion and all three
    sequences. Patients depend on `seed` and their number alone, so a larger `count` begins with a smaller
    one's slices. The same count and seed give the same bytes with the same versions of numpy and OpenCV.
    `progress` is given the number of slices written so far, after each.

    Raises UsageError when `count` < 1, `seed` < 0, or the tree is there already; MachineError when a file
    cannot be written.
    """
    if count < 1:
        raise UsageError(f"cannot draw {count} phantoms: give a count of at least 1")
    if seed < 0:
        raise UsageError(f"cannot use seed {seed}: give a seed of at least 0")
    root = _new_root(dest)
    slices = lesion_slices = patients = 0
    while slices < count:
        patients += 1
        name, drawn = _draw_patient(seed, patients)
        folder = root / name
        _make_folder(folder)
        for number, (image, mask) in enumerate(drawn, start=1):
            _write_tiff(folder / f"{name}_{number}.tif", np.ascontiguousarray(image[:, :, ::-1]))
            _write_tiff(folder / f"{name}_{number}_mask.tif", mask)
            slices += 1
            lesion_slices += bool(mask.any())
            if progress is not None:
                progress(slices)
            if slices == count:
                break
    return PhantomSet(root, slices, lesion_slices, patients)


def _new_root(dest: Path) -> Path:
    root = dest / "kaggle_3m"
    _make_folder(root)
    if any(root.iterdir()):
        raise UsageError(f"{root} is not empty: name another folder, or remove it first")
    return root


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{path} cannot be a folder, a file is in its place: name another") from error
    except OSError as error:
        raise MachineError(f"cannot make the folder {path}: {error.strerror}") from error


def _write_tiff(path: Path, pixels: Bytes) -> None:
    if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_TIFF_COMPRESSION, 1]):
        raise MachineError(f"cannot write {path}: is the disk full, or the folder read-only?")


def _draw_patient(seed: int, number: int) -> tuple[str, Iterator[tuple[Bytes, Bytes]]]:
    rng = np.random.default_rng([seed, number])
    name = f"PHANTOM_{rng.choice(INSTITUTIONS)}_{number:04d}"
    heights = np.linspace(rng.uniform(-0.78, -0.58), rng.uniform(0.97, 1.06), int(rng.integers(18, 25)))
    head = _draw_head(rng)
    has_lesion = rng.random() < LESION_PATIENTS or number == 1
    lesion = _draw_lesion(rng, head, float(heights[1] - heights[0])) if has_lesion else None
    missing = MISSING[rng.choice(len(MISSING), p=MISSING_SHARES)] if number > 1 else ()
    scanner = _draw_scanner(rng, missing)
    return name, (_draw_slice(rng, head, lesion, scanner, float(z)) for z in heights)


def _draw_head(rng: np.random.Generator) -> _Head:
    half_width, half_length = rng.normal(86, 6), rng.normal(109, 6)
    turn = np.deg2rad(rng.normal(0, 4))
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - (SIZE - 1) / 2
    columns -= rng.normal(0, 4)
    rows -= rng.normal(0, 5)
    u = (columns * np.cos(turn) + rows * np.sin(turn)) / half_width
    v = (rows * np.cos(turn) - columns * np.sin(turn)) / half_length
    u = u * (1 + rng.normal(0, 0.012) * np.sign(u)) / (1 + rng.uniform(0.03, 0.09) * v)
    outline = _resized(rng.standard_normal((6, 6)))
    radius = np.hypot(u, v) * (1 + 0.009 * outline)
    # What lies inside is bent a little, so that no ventricle or midline is a textbook one.
    u = u + 0.011 * _resized(rng.standard_normal((7, 7)))
    v = v + 0.016 * _resized(rng.standard_normal((7, 7)))
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
    return _Head(
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


def _draw_lesion(rng: np.random.Generator, head: _Head, spacing: float) -> _Lesion:
    z = rng.uniform(-0.08, 0.66)
    reach = 0.8 * _head_radius(z)
    side = float(rng.choice([-1, 1]))
    u, v = side * rng.uniform(0.28, 0.66) * reach, rng.uniform(-0.62, 0.55) * reach
    y, x = np.unravel_index(np.argmin(np.hypot(head.u - u, head.v - v)), head.u.shape)
    size = float(np.clip(28.5 * np.exp(rng.normal(0, 0.38)), 12, 46))
    stretch = np.exp(rng.normal(0, 0.18))
    flair = np.clip(rng.normal(1.53, 0.22), 1.22, 2.2)
    return _Lesion(
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


def _draw_scanner(rng: np.random.Generator, missing: tuple[int, ...]) -> _Scanner:
    bias = np.stack([_resized(rng.standard_normal((3, 3))) for _ in range(3)])
    return _Scanner(
        bias=np.exp(0.12 * bias),
        blur=rng.uniform(0.55, 1.1),
        noise=rng.uniform(1.0, 4.0),
        floor=rng.uniform(0.8, 3.0),
        missing=missing,
    )


def _draw_slice(
    rng: np.random.Generator, head: _Head, lesion: _Lesion | None, scanner: _Scanner, z: float
) -> tuple[Bytes, Bytes]:
    """One slice at height `z` (-1 neck, 1 vertex): image [256,256,3] and mask [256,256] of 0/255."""
    canvas = np.zeros((3, SIZE, SIZE), np.float32)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    if z < 1:
        depth = (_head_radius(z) - head.radius) * np.float32(head.pixels)
        brain = _brain_depth(head, depth, z)
        _paint_surroundings(canvas, head, depth, brain, z)
        _paint_brain(canvas, head, brain, z)
        spared = _paint_ventricles(canvas, head, brain, z)
        if lesion is not None:
            mask = _paint_lesion(canvas, head, lesion, brain, spared, z)
    return _acquire(rng, canvas, scanner, z), mask


def _head_radius(z: float) -> float:
    """Radius of the head at height `z`, as a share of its largest: blunt above, slowly tapering below."""
    return 1 - 0.22 * z * z if z < 0 else max(0.0, 1 - z**2.5) ** (1 / 2.1)


def _brain_depth(head: _Head, depth: Plane, z: float) -> Plane:
    """Pixels below the brain's surface, negative outside; towards the base only some lobes are left."""
    # A slice near the vertex cuts the scalp and skull obliquely, so that they look thicker.
    brain = depth - (head.scalp + head.skull + 2.5) / np.float32(max(_head_radius(z), 0.5))
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


def _paint_surroundings(canvas: Plane, head: _Head, depth: Plane, brain: Plane, z: float) -> None:
    """Scalp, face, eyes, skull and the fluid around the brain."""
    colours = head.colours
    detail = _section(head.detail, z)
    _paint(canvas, _step(depth), colours["muscle"])
    _paint(canvas, _step(depth - 1.5) * (0.85 + 0.1 * detail), colours["fat"])
    if z < 0.05:
        face = _step(depth - head.scalp)
        texture = _section(head.texture, z)
        mixed = texture + 0.5 * detail
        _paint(canvas, face, colours["muscle"])
        _paint(canvas, face * _step(3 * (mixed - 0.75)), 0.8 * colours["fat"])
        front = _step(6 * (0.05 - head.v)) * _step(12 * (0.3 - np.abs(head.u)))
        _paint(canvas, face * _step(4 * (-mixed - 0.9 + 1.1 * front)), colours["air"])
        if -0.42 < z < -0.12:
            _paint_eyes(canvas, head, face, z)
    middle = -1.2 - head.skull / 2
    _paint(canvas, _step(brain + head.skull + 2) * _step(depth - head.scalp), colours["bone"])
    _paint(canvas, np.exp(-(((brain - middle) / 1.2) ** 2)) * _step(depth - head.scalp), colours["marrow"])
    _paint(canvas, _step(brain + 2), colours["csf"])


def _paint_eyes(canvas: Plane, head: _Head, face: Plane, z: float) -> None:
    size = 0.17 * np.sqrt(1 - ((z + 0.27) / 0.16) ** 2)
    eye = np.hypot(np.abs(head.u) - 0.36, head.v + 0.66) if size > 0 else head.radius + 1
    _paint(canvas, face * _step(40 * (size + 0.09 - eye)), 0.9 * head.colours["fat"])
    _paint(canvas, face * _step(60 * (size - eye)), head.colours["eye"])


def _paint_brain(canvas: Plane, head: _Head, brain: Plane, z: float) -> None:
    """White matter under a folded ribbon of cortex, with fluid and vessels in the folds."""
    colours = head.colours
    inside = _step(brain)
    folds = np.abs(_section(head.folds, z))
    detail = _section(head.detail, z)
    grain = 1 + 0.05 * _section(head.texture, z) + 0.03 * detail
    _paint(canvas, inside, colours["white"])
    shallow = np.clip(1.15 - brain / 26, 0, 1)
    cortex = np.maximum(_step(5 * (0.62 * shallow - folds)), _step(3.5 - brain))
    _paint(canvas, inside * cortex, colours["grey"])
    if z < -0.05:
        cerebellum = _step(14 * (head.v - 0.16)) * min(1.0, -4 * z)
        _paint(canvas, inside * cerebellum * (0.7 + 0.15 * detail), colours["folia"])
    sulci = inside * _step(7 * (head.sulcus * shallow - folds)) * np.clip(shallow * 1.6, 0, 1)
    _paint(canvas, 0.85 * sulci, colours["csf"])
    _paint(canvas, 0.8 * sulci * _step(3 * (detail - 1.2)), colours["vessel"])
    if z > -0.1:
        deep = np.hypot((np.abs(head.u) - 0.25) / 0.13, head.v / 0.24)
        ganglia = inside * _step(5 * (1 - deep)) * max(0.0, 1 - abs(z - 0.12) / 0.22)
        _paint(canvas, ganglia, colours["grey"])
        _paint_midline(canvas, head, inside, z)
    canvas *= 1 + inside * (grain - 1)
    foci = inside * (1 - shallow) * _step(3 * (detail - head.foci))
    _paint(canvas, 0.7 * foci, colours["cap"])


def _paint_midline(canvas: Plane, head: _Head, inside: Plane, z: float) -> None:
    """The fissure between the hemispheres, the falx in it and the sinus behind it."""
    # The corpus callosum and the ganglia join the hemispheres up to z = 0.5.
    joined = 0.42 if z < 0.5 else 0.0
    line = _step(1.6 - np.abs(head.u) * head.pixels) * _step(20 * (np.abs(head.v + 0.02) - joined))
    _paint(canvas, 0.8 * inside * line, head.colours["csf"])
    _paint(canvas, 0.45 * inside * line * _step(1 - np.abs(head.u) * head.pixels), head.colours["falx"])
    edge = _head_radius(z) - (head.scalp + head.skull + 4) / head.pixels
    sinus = np.hypot(head.u, 0.8 * (head.v - edge)) * head.pixels
    _paint(canvas, _step(3.2 - sinus), head.colours["vessel"])


def _paint_ventricles(canvas: Plane, head: _Head, brain: Plane, z: float) -> Plane:
    """Lateral and third ventricles with choroid plexus and thin bright caps; returns where they are, 0..1."""
    openness = np.sqrt(max(0.0, 1 - ((z - 0.24) / 0.26) ** 2)) * head.ventricle
    if openness < 0.2:
        return np.zeros_like(brain)
    side = np.abs(head.u)
    front = np.hypot((side - 0.10 - 0.12 * (-0.12 - head.v)) / (0.055 * openness), (head.v + 0.17) / 0.19)
    back = np.hypot((side - 0.17 - 0.35 * (head.v - 0.25)) / (0.065 * openness), (head.v - 0.27) / 0.20)
    third = np.hypot(head.u / (0.022 * openness), (head.v - 0.04) / 0.12)
    horns = np.minimum(front, back)
    inside = _step(brain - 4)
    fluid = inside * _step(5 * (1.0 - (horns if z > 0.12 else np.minimum(horns, third))))
    tips = np.clip(12 * (np.abs(head.v - 0.04) - 0.29), 0, 1)
    _paint(canvas, head.caps * inside * tips * _step(5 * (1.38 - horns)), head.colours["cap"])
    _paint(canvas, fluid, head.colours["csf"])
    choroid = np.hypot((side - 0.19) / 0.035, (head.v - 0.27) / 0.07)
    _paint(canvas, 0.8 * fluid * _step(4 * (1 - choroid)), head.colours["choroid"])
    return fluid


def _paint_lesion(
    canvas: Plane, head: _Head, lesion: _Lesion, brain: Plane, spared: Plane, z: float
) -> Bytes:
    """Blend the lesion in where this slice cuts it; returns its mask [256,256] of 0/255."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    offset = (z - lesion.z) / lesion.half_height
    if abs(offset) >= 1:
        return mask
    cut = np.float32(np.sqrt(1 - offset * offset))
    distance = _lesion_distance(lesion, cut, z)
    size = np.float32(np.sqrt(lesion.axes[0] * lesion.axes[1]))
    same_side = _step(head.u * lesion.side * head.pixels - 2)
    amount = np.clip((cut - distance) * size / lesion.softness + 0.5, 0, 1)
    amount *= _step(brain - 2) * same_side * (1 - spared)
    _, parts, found, _ = cv2.connectedComponentsWithStats((amount > 0.5).astype(np.uint8), connectivity=4)
    if len(found) < 2 or found[1:, cv2.CC_STAT_AREA].max() < MIN_LESION_PIXELS:
        return mask
    mask[parts == 1 + int(np.argmax(found[1:, cv2.CC_STAT_AREA]))] = 255
    amount *= cv2.blur(cv2.dilate(mask, np.ones((5, 5), np.uint8)), (3, 3)) / np.float32(255)
    tissue = 0.5 * (head.colours["white"] + head.colours["grey"])
    shade = 1 + 0.1 * _section(head.texture, z)
    core = _step(5 * (lesion.cyst * cut - distance))
    ring = np.exp(-(((distance - 0.72 * cut) / 0.13) ** 2)) * np.float32(lesion.rim)
    for channel, plane in enumerate(canvas):
        level = tissue[channel] * lesion.contrast[channel] * (shade if channel == FLAIR else 2 - shade)
        if lesion.cyst:
            level = level + core * (0.8 * head.colours["csf"][channel] - 0.55 * level)
        if channel > FLAIR:
            level = level + tissue[channel] * ring
        plane += 0.9 * amount * (level - plane)
    return mask


def _lesion_distance(lesion: _Lesion, cut: np.float32, z: float) -> Plane:
    """Distance from the lesion's axis in lesion radii, made ragged by noise [256,256]."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    x, y = columns - lesion.x, rows - lesion.y
    cosine, sine = np.float32(np.cos(lesion.turn)), np.float32(np.sin(lesion.turn))
    distance = np.hypot((x * cosine + y * sine) / lesion.axes[0], (y * cosine - x * sine) / lesion.axes[1])
    ragged: Plane = distance + np.float32(lesion.ragged) * cut * _section(lesion.outline, z)
    return ragged.astype(np.float32)


def _acquire(rng: np.random.Generator, canvas: Plane, scanner: _Scanner, z: float) -> Bytes:
    """What a scanner makes of the drawing: bias, blur, noise of a magnitude image -> uint8 [256,256,3]."""
    fade = np.float32(np.clip(1.25 + z, 0.5, 1))
    signal = canvas * scanner.bias * fade
    noise = rng.standard_normal((2, 3, SIZE, SIZE), dtype=np.float32) * np.float32(scanner.noise)
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    for channel in range(3):
        blurred = cv2.GaussianBlur(signal[channel], (0, 0), scanner.blur)
        magnitude = np.hypot(blurred + noise[0, channel], noise[1, channel])
        smooth = cv2.GaussianBlur(magnitude, (3, 3), 0.55) - np.float32(scanner.floor * scanner.noise)
        image[:, :, channel] = np.clip(np.rint(smooth), 0, 255)
    for channel in scanner.missing:
        image[:, :, channel] = image[:, :, FLAIR]
    return image


def _paint(canvas: Plane, amount: Plane, colour: Plane) -> None:
    for plane, level in zip(canvas, colour, strict=True):
        plane += amount * (level - plane)


def _step(distance: Plane) -> Plane:
    """0 outside, 1 inside, with an edge one unit wide: the share of a pixel that lies inside."""
    share: Plane = np.clip(distance + np.float32(0.5), 0, 1)
    return share


def _section(volume: Plane, z: float) -> Plane:
    """Smooth noise [256,256] of unit variance where height `z` cuts a volume [planes,cells,cells]."""
    place = float(np.clip((z + 1) / 2.1, 0, 1)) * (len(volume) - 1)
    below = min(int(place), len(volume) - 2)
    angle = (place - below) * np.pi / 2
    mixed = np.float32(np.cos(angle)) * volume[below] + np.float32(np.sin(angle)) * volume[below + 1]
    return _resized(mixed)


def _resized(cells: Plane) -> Plane:
    field = cv2.resize(cells.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return np.asarray((field - field.mean()) / field.std(), np.float32)
