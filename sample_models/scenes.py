"""Rendered rooms with people, animals and things: the data of the sample models, from numpy alone.

A scene is a wall, a floor, windows and a handful of objects built from tapered strokes, drawn back
to front, then lit and given sensor noise. Row `i` of a split depends on the split's seed and `i`
alone, so the first n rows of a split are the same rows however many are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from shapes import strokes

Array = NDArray[np.float32]
Rng = np.random.Generator

SPLITS = {"train": 11, "calibration": 22, "test": 33}  # seeds: no two splits share a row

OBJECTS = (
    "person", "cat", "dog", "bird", "chair", "stool",
    "table", "lamp", "plant", "cup", "bag", "car",
)  # fmt: skip
DETECTED = ("person", "cat", "dog")
REGIONS = ("wall", "floor", "window", "furniture", "person", "animal", "plant", "thing")
_REGION_OF = {
    "person": 4, "cat": 5, "dog": 5, "bird": 5, "chair": 3, "stool": 3,
    "table": 3, "lamp": 7, "plant": 6, "cup": 7, "bag": 7, "car": 7,
}  # fmt: skip
# Height relative to a person, so that a room looks like a room.
_HEIGHT = {
    "person": 1.0, "cat": 0.42, "dog": 0.48, "bird": 0.32, "chair": 0.62, "stool": 0.42,
    "table": 0.5, "lamp": 0.8, "plant": 0.6, "cup": 0.3, "bag": 0.36, "car": 0.34,
}  # fmt: skip


@dataclass(frozen=True)
class Paint:
    """Two colours and the pattern that mixes them."""

    first: Array
    second: Array
    pattern: int  # 0 plain, 1 stripes, 2 checks, 3 spots
    frequency: float
    angle: float
    phase: float


@dataclass
class Scene:
    """One rendered scene: image (H, W, 3) in 0..1, region and instance maps (H, W), -1 is nothing.

    `boxes` holds the extent (x0, y0, x1, y1) in pixels of each object, hidden parts included.
    """

    image: Array
    regions: NDArray[np.int8]
    instances: NDArray[np.int8]
    names: list[str]
    boxes: list[tuple[float, float, float, float]]
    areas: list[int]


# --- drawing --------------------------------------------------------------------------------


def _paint(rng: Rng, near: Array | None = None) -> Paint:
    """A random paint; `near` pulls its colours towards a colour, which makes camouflage."""
    first, second = (rng.random(3, dtype=np.float32) for _ in range(2))
    second = first + (second - first) * np.float32(rng.uniform(0.15, 0.6))
    if near is not None:
        pull = np.float32(rng.uniform(0.2, 0.6))
        first, second = first + (near - first) * pull, second + (near - second) * pull
    return Paint(
        first, second, int(rng.choice(4, p=(0.4, 0.25, 0.15, 0.2))),
        rng.uniform(0.5, 1.8), rng.uniform(0, math.pi), rng.uniform(0, 6.3),
    )  # fmt: skip


def _colour(paint: Paint, x: Array, y: Array) -> Array:
    """Colours of a paint at pixel positions: (h, w, 3), or (3,) when it is plain."""
    if paint.pattern == 0:
        return paint.first
    c, s = math.cos(paint.angle) * paint.frequency, math.sin(paint.angle) * paint.frequency
    wave = np.sin(x * np.float32(c) + y * np.float32(s) + np.float32(paint.phase))
    if paint.pattern > 1:
        other = np.sin(x * np.float32(-s) + y * np.float32(c))
        wave = wave * other if paint.pattern == 2 else wave + other - 0.8
    mix = np.clip(wave * 3 + 0.5, 0, 1)[..., None]
    mixed: Array = paint.first + (paint.second - paint.first) * mix
    return mixed


def _draw_stroke(
    scene: Scene, ends: tuple[float, float, float, float], radii: tuple[float, float],
    flat: bool, paint: Paint, shade: float, region: int, instance: int, opacity: float = 1.0,
) -> None:  # fmt: skip
    """Blend one stroke, given in pixels, over the scene; region -1 leaves the maps alone."""
    x0, y0, x1, y1 = ends
    r0, r1 = radii
    height, width = scene.regions.shape
    reach = max(r0, r1) + 1.0
    left, right = max(int(min(x0, x1) - reach), 0), min(int(max(x0, x1) + reach) + 2, width)
    top, bottom = max(int(min(y0, y1) - reach), 0), min(int(max(y0, y1) + reach) + 2, height)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32)[None, :]
    y = np.arange(top, bottom, dtype=np.float32)[:, None]
    dx, dy = x1 - x0, y1 - y0
    length = max(math.hypot(dx, dy), 1e-3)
    along = ((x - x0) * (dx / length) + (y - y0) * (dy / length)).astype(np.float32)
    at = np.clip(along, 0, length)
    radius = r0 + (r1 - r0) / length * at
    if flat:
        across = np.abs((x - x0) * (dy / length) - (y - y0) * (dx / length))
        outside = np.maximum(across - radius, np.abs(along - length / 2) - length / 2)
    else:
        outside = np.hypot(x - x0 - at * (dx / length), y - y0 - at * (dy / length)) - radius
    alpha = np.clip(0.5 - outside, 0, opacity).astype(np.float32)
    rounding = shade * (1 + 0.12 * np.clip(outside / max(r0, r1, 1.0), -1, 0))[..., None]
    here = scene.image[top:bottom, left:right]
    here += alpha[..., None] * (_colour(paint, x, y) * rounding.astype(np.float32) - here)
    if region >= 0:
        solid = alpha > 0.5
        scene.regions[top:bottom, left:right][solid] = region
        scene.instances[top:bottom, left:right][solid] = instance


def _draw_object(
    scene: Scene, rng: Rng, name: str, base: tuple[float, float], size: float, tilt: float,
    paints: Sequence[Paint],
) -> None:  # fmt: skip
    """Draw an object `size` pixels high standing at `base`, and note its box."""
    instance = len(scene.names)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    stretch = rng.uniform(0.85, 1.2)
    c, s = math.cos(tilt) * size, math.sin(tilt) * size
    xs: list[float] = []
    ys: list[float] = []
    for part in strokes(name, rng):
        ends = []
        for px, py, r in ((part.x0, part.y0, part.r0), (part.x1, part.y1, part.r1)):
            px *= mirror * stretch
            x, y = base[0] + px * c + py * s, base[1] + px * s - py * c
            ends += [x, y]
            xs += [x - r * size, x + r * size]
            ys += [y - r * size, y + r * size]
        _draw_stroke(
            scene, (ends[0], ends[1], ends[2], ends[3]), (part.r0 * size, part.r1 * size),
            part.flat, paints[part.paint], rng.uniform(0.85, 1.1),
            _REGION_OF[name], instance,
        )  # fmt: skip
    height, width = scene.regions.shape
    scene.names.append(name)
    scene.boxes.append(
        (max(min(xs), 0.0), max(min(ys), 0.0), min(max(xs), width), min(max(ys), height))
    )
    scene.areas.append(int((scene.instances == instance).sum()))


def _smooth_noise(rng: Rng, height: int, width: int, cells: int) -> Array:
    """Bilinear noise in -1..1 with about `cells` cells a side: (height, width)."""
    grid = rng.uniform(-1, 1, (cells + 2, cells + 2)).astype(np.float32)
    rows, columns = (np.linspace(0, cells, n, dtype=np.float32) for n in (height, width))
    i, j = rows.astype(int), columns.astype(int)
    a, b = (rows - i)[:, None], (columns - j)[None, :]
    tall = grid[i] * (1 - a) + grid[i + 1] * a
    smooth: Array = tall[:, j] * (1 - b) + tall[:, j + 1] * b
    return smooth


def _empty_room(rng: Rng, size: int, windows: int) -> tuple[Scene, float]:
    """A room without objects, and the row where its floor begins."""
    horizon = size * rng.uniform(0.3, 0.65)
    x = np.arange(size, dtype=np.float32)[None, :]
    y = np.arange(size, dtype=np.float32)[:, None]
    wall, floor = _paint(rng), _paint(rng)
    edge = horizon + (x - size / 2) * rng.uniform(-0.12, 0.12)
    is_floor = np.broadcast_to(y > edge, (size, size))
    depth = np.maximum(y - horizon, 1.0)  # floor patterns shrink towards the horizon
    perspective = np.float32(size * 0.6) / (depth + size * 0.25)
    image = np.where(
        is_floor[..., None],
        _colour(floor, (x - size / 2) * perspective, -perspective * size * 0.5),
        _colour(wall, x, y),
    ).astype(np.float32)
    texture = _smooth_noise(rng, size, size, int(rng.integers(3, 24)))
    image += texture[..., None] * np.float32(rng.uniform(0.02, 0.12))
    scene = Scene(image, is_floor.astype(np.int8), np.full((size, size), -1, np.int8), [], [], [])
    for _ in range(windows):
        w, h = rng.uniform(0.06, 0.16) * size, rng.uniform(0.1, 0.3) * size
        cx, cy = rng.uniform(0, size), horizon - h / 2 - rng.uniform(0.02, 0.25) * size
        frame, pane = _paint(rng), _paint(rng)
        _draw_stroke(scene, (cx, cy - h / 2, cx, cy + h / 2), (w, w), True, frame, 1.0, 2, -1)
        for side in (-0.5, 0.5):
            px = cx + side * w
            ends = (px, cy - h * 0.42, px, cy + h * 0.42)
            _draw_stroke(scene, ends, (w * 0.4, w * 0.4), True, pane, 1.2, 2, -1)
    return scene, horizon


def _paints(rng: Rng, scene: Scene, base: tuple[float, float]) -> list[Paint]:
    """Three paints; every second object borrows the colour behind it."""
    size = scene.regions.shape[0]
    row, column = (int(np.clip(v, 0, size - 1)) for v in (base[1] - size * 0.08, base[0]))
    near = scene.image[row, column].copy() if rng.random() < 0.4 else None
    return [_paint(rng, near) for _ in range(3)]


def _expose(scene: Scene, rng: Rng, noise: float) -> NDArray[np.uint8]:
    """Light, blur and sensor noise; returns (H, W, 3) uint8."""
    size = scene.regions.shape[0]
    image = scene.image
    light = 1 + rng.uniform(0.1, 0.5) * _smooth_noise(rng, size, size, int(rng.integers(1, 4)))
    cast = rng.uniform(0.85, 1.15, 3) * rng.uniform(0.55, 1.2)
    image = image * light[..., None] * cast.astype(np.float32)
    if rng.random() < 0.4:
        image = (image + np.roll(image, 1, axis=int(rng.integers(2)))) / 2
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    image = image + grain * np.float32(rng.uniform(0.2, 1.0) * noise)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


# --- tasks ----------------------------------------------------------------------------------


def room(rng: Rng, size: int, names: Sequence[str], windows: int, scale: float) -> Scene:
    """A room with the named objects, the farthest drawn first; `scale` is a person's height at
    the bottom edge as a fraction of the image.
    """
    scene, horizon = _empty_room(rng, size, windows)
    depths = np.sort(rng.uniform(0.08, 1.0, len(names)))
    for name, depth in zip(names, depths, strict=True):
        base = (rng.uniform(0.05, 0.95) * size, horizon + (size - horizon) * float(depth) * 0.98)
        tall = size * scale * _HEIGHT[name] * (0.35 + 0.65 * float(depth)) * rng.uniform(0.8, 1.2)
        shadow = Paint(np.zeros(3, np.float32), np.zeros(3, np.float32), 0, 1, 0, 0)
        reach = tall * 0.25
        ends = (base[0] - reach, base[1], base[0] + reach, base[1])
        _draw_stroke(scene, ends, (tall * 0.06, tall * 0.06), False, shadow, 1.0, -1, -1, 0.4)
        _draw_object(scene, rng, name, base, tall, rng.normal(0, 0.08), _paints(rng, scene, base))
    return scene


def classified(rng: Rng, size: int) -> tuple[NDArray[np.uint8], int]:
    """A close-up of one object before clutter, partly hidden: image and index into OBJECTS."""
    label = int(rng.integers(len(OBJECTS)))
    clutter = [OBJECTS[i] for i in rng.integers(len(OBJECTS), size=int(rng.integers(0, 3)))]
    scene = room(rng, size, clutter, int(rng.integers(0, 2)), 0.45)
    name = OBJECTS[label]
    tall = size * rng.uniform(0.45, 0.9) * (0.75 if name in ("car", "table", "cat", "dog") else 1)
    base = (size * rng.uniform(0.36, 0.64), size * rng.uniform(0.46, 0.58) + tall * 0.5)
    paints = _paints(rng, scene, base)
    _draw_object(scene, rng, name, base, tall, rng.normal(0, 0.25), paints)
    for _ in range(int(rng.integers(0, 4))):  # something in front of it
        x, y, angle = rng.uniform(0, size), rng.uniform(0.2, 0.9) * size, rng.uniform(0, 6.3)
        reach, r = rng.uniform(0.05, 0.4) * size, rng.uniform(0.01, 0.06) * size
        ends = (x, y, x + reach * math.cos(angle), y + reach * math.sin(angle))
        _draw_stroke(scene, ends, (r, r), bool(rng.random() < 0.5), _paint(rng), 1.0, -1, -1)
    return _expose(scene, rng, 0.07), label


def _crowd(rng: Rng, low: int, high: int) -> list[str]:
    """Random object names, half of them of the detected kinds."""
    weights = np.where([name in DETECTED for name in OBJECTS], 0.5 / len(DETECTED), 0.0)
    weights[weights == 0] = 0.5 / (len(OBJECTS) - len(DETECTED))
    count = int(rng.integers(low, high + 1))
    return [OBJECTS[i] for i in rng.choice(len(OBJECTS), size=count, p=weights)]


def detected(rng: Rng, size: int) -> tuple[NDArray[np.uint8], Array, NDArray[np.int64]]:
    """A room: image, boxes (n, 4) as x0, y0, x1, y1 in 0..1, labels (n,) into DETECTED.

    An object less than a quarter visible is not asked for.
    """
    scene = room(rng, size, _crowd(rng, 3, 8), int(rng.integers(0, 3)), 0.65)
    boxes, labels = [], []
    for i, name in enumerate(scene.names):
        if name not in DETECTED:
            continue
        visible = int((scene.instances == i).sum())
        if visible >= max(0.25 * scene.areas[i], 20):
            boxes.append(scene.boxes[i])
            labels.append(DETECTED.index(name))
    found = np.array(boxes, np.float32).reshape(-1, 4) / np.float32(size)
    return _expose(scene, rng, 0.08), found, np.array(labels, np.int64)


def segmented(rng: Rng, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """A room: image and the region of every pixel, (size, size) into REGIONS."""
    scene = room(rng, size, _crowd(rng, 4, 9), int(rng.integers(1, 4)), 0.6)
    return _expose(scene, rng, 0.08), scene.regions


def row_rng(split: str, row: int) -> Rng:
    """The random stream of one row of one split."""
    return np.random.default_rng([SPLITS[split], row])
