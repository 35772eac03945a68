"""The embedded image set: ten classes that need shape and texture, rendered from a seed, no download.

A class is a silhouette with a texture, so neither alone decides. Pose, colors, light, clutter and occlusion are
random; image i of a split depends on (seed, split, i) alone.
"""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from alexnet.data.store.writer import Plan, PreparedImage, write_store

log = logging.getLogger(__name__)

SIZE = 256
SILHOUETTES = ("disc", "square", "triangle", "star", "cross")
TEXTURES = ("striped", "dotted")
CLASSES = [f"{texture} {shape}" for shape in SILHOUETTES for texture in TEXTURES]
SPLITS = ("train", "val")
GRID = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="xy")).astype(np.float32)


def render(seed: int, split: str, index: int) -> tuple[np.ndarray, int]:
    """PreparedImage `index`, (256, 256, 3) uint8, and its label."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    label = index % len(CLASSES)
    shape, texture = divmod(label, len(TEXTURES))
    image = _background(rng)
    for _ in range(rng.integers(2, 6)):
        _paint(image, _blob(rng), _color(rng))
    center = rng.uniform(88, 168, 2)
    radius = rng.uniform(60, 85)
    x, y = _turned(center, rng.uniform(0, 2 * np.pi)) / radius
    inside = _coverage(_silhouette(shape, x, y) * radius)
    first, second = _contrasting(rng)
    pattern = _texture(texture, rng)[..., None]
    _paint(image, inside, first * pattern + second * (1 - pattern))
    _paint(image, _bar(rng, center, radius), _color(rng))
    image *= _light(rng)[..., None]
    grain = rng.integers(0, 256, image.shape, np.uint8)
    image += (grain - np.float32(127.5)) * np.float32(rng.uniform(0.03, 0.12))
    return image.clip(0, 255, out=image).astype(np.uint8), label


def render_store(folder: Path, *, seed: int, train: int, val: int) -> None:
    """The set as a store in `folder`, unless it is there already. Raises ValueError if another store is."""
    made_of = {"drawn by": "alexnet.data.shapes", "seed": seed, "train": train, "val": val}
    if not folder.exists():
        log.info("rendering %d + %d images into %s", train, val, folder)
    write_store(
        folder, Plan(SIZE, CLASSES, {"train": train, "val": val}, partial(_read, seed), made_of)
    )


def _read(seed: int, split: str, rows: range) -> Iterator[PreparedImage]:
    for i in rows:
        pixels, label = render(seed, split, i)
        yield PreparedImage(pixels.tobytes(), pixels, label, f"{split} {i}")


def _color(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(20, 235, 3).astype(np.float32)


def _contrasting(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two colors at least 90 gray levels separate_layers."""
    while True:
        first, second = _color(rng), _color(rng)
        if abs(first.mean() - second.mean()) > 90:
            return first, second


def _paint(image: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if len(rows):
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        part = image[box]
        part += mask[box][..., None] * ((color if color.ndim == 1 else color[box]) - part)


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Signed distance in pixels, negative inside, to an anti-aliased mask."""
    return (0.5 - distance).clip(0, 1)


def _turned(center: np.ndarray, angle: float) -> np.ndarray:
    """The pixels' coordinates (2, 256, 256) around `center`, turned by `angle`."""
    x, y = GRID[0] - np.float32(center[0]), GRID[1] - np.float32(center[1])
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return np.stack([c * x + s * y, c * y - s * x])


def _silhouette(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance, roughly, of a shape of radius 1."""
    if shape == 0:
        return np.hypot(x, y) - 0.85
    if shape == 1:
        return np.maximum(abs(x), abs(y)) - 0.75
    if shape == 2:
        return np.maximum(np.maximum(0.866 * abs(x) + 0.5 * y, -y) - 0.5, -2)
    if shape == 3:
        angle, radius = np.arctan2(y, x), np.hypot(x, y)
        return (radius - (0.7 + 0.32 * np.cos(5 * angle))) * 0.6
    across = np.maximum(abs(x) - 0.95, abs(y) - 0.32)
    return np.minimum(across, np.maximum(abs(y) - 0.95, abs(x) - 0.32))


def _texture(texture: int, rng: np.random.Generator) -> np.ndarray:
    """Stripes or dots, (256, 256) in [0, 1]."""
    period = rng.uniform(9, 16)
    x, y = _turned(rng.uniform(0, SIZE, 2), rng.uniform(0, 2 * np.pi)) * np.float32(
        2 * np.pi / period
    )
    wave = np.sin(x) if texture == 0 else np.cos(x) + np.cos(y) - 0.5
    return (wave * 3 + 0.5).clip(0, 1)


def _background(rng: np.random.Generator) -> np.ndarray:
    """A gradient between two colors with soft blotches."""
    x = _turned(np.array([128, 128]), rng.uniform(0, 2 * np.pi))[0] / 360 + 0.5
    coarse = rng.normal(0, 0.2, (9, 9)).astype(np.float32)
    place = np.linspace(0, 8, SIZE, dtype=np.float32)
    low = np.minimum(place.astype(int), 7)
    part = place - low
    rows = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
    blotches = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    mix = (x + blotches)[..., None]
    first, second = _color(rng), _color(rng)
    return second + mix * (first - second)


def _blob(rng: np.random.Generator) -> np.ndarray:
    """Clutter: a small ellipse or a line."""
    x, y = _turned(rng.uniform(0, SIZE, 2), rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.5:
        long, short = rng.uniform(10, 28, 2)
        return _coverage((np.hypot(x / long, y / short) - 1) * min(long, short))
    return _coverage(np.maximum(abs(x) - rng.uniform(20, 70), abs(y) - rng.uniform(2, 5)))


def _bar(rng: np.random.Generator, center: np.ndarray, radius: float) -> np.ndarray:
    """Occlusion: half of the images have a bar over the object's side."""
    if rng.random() < 0.5:
        return np.zeros((SIZE, SIZE), np.float32)
    x, y = _turned(center, rng.uniform(0, 2 * np.pi))
    return _coverage(np.maximum(abs(x - 0.55 * radius) - rng.uniform(5, 11), abs(y) - 1.2 * radius))


def _light(rng: np.random.Generator) -> np.ndarray:
    """A brightness gradient, 0.6 to 1.2."""
    x = _turned(np.array([128, 128]), rng.uniform(0, 2 * np.pi))[0] / 360
    return rng.uniform(0.75, 1.05) + rng.uniform(0, 0.4) * x
