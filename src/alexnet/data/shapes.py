"""The embedded image set: ten classes, rendered from a seed, so that nothing has to be downloaded.

A class is a silhouette with a texture, so a network has to learn both. Pose, colors, light, clutter
and occlusion are random. An image is painted in layers: a background, clutter, the object, perhaps
a bar over the object's side, then light and grain over all of it. A layer is a color and a mask in
[0, 1], which is computed from the signed distance to the outline, so that edges are antialiased.

Image i of a split depends on (seed, split, i) alone. All its random numbers come from one generator
in a fixed order: reordering two draws makes another image set.
"""

import logging
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from alexnet.data.store.writer import Plan, PreparedImage, write_store

log = logging.getLogger(__name__)

SIZE = 256
SILHOUETTES = ("disc", "square", "triangle", "star", "cross")
TEXTURES = ("striped", "dotted")
CLASSES = [f"{texture} {shape}" for shape, texture in product(SILHOUETTES, TEXTURES)]
SPLITS = ("train", "val")  # their order is part of the seed
GRID = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="xy")).astype(np.float32)
MIDDLE = np.array([SIZE // 2, SIZE // 2])
Array = NDArray[np.floating]


def render_store(
    folder: Path, *, seed: NonNegativeInt, train: PositiveInt, val: PositiveInt
) -> None:
    """The set as a store in `folder`, unless it is there already.

    Raises UserError if `folder` holds another store.
    """
    if not folder.exists():
        log.info("rendering %d + %d images into %s", train, val, folder)
    plan = Plan(
        size=SIZE,
        classes=CLASSES,
        counts={"train": train, "val": val},
        read=partial(_render_images, seed),
        made_of={"drawn by": "alexnet.data.shapes", "seed": seed, "train": train, "val": val},
    )
    write_store(folder, plan)


def render(seed: int, split: str, index: int) -> tuple[NDArray[np.uint8], int]:
    """Image `index` of a split, (256, 256, 3), and its label."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    label = index % len(CLASSES)
    shape, texture = divmod(label, len(TEXTURES))
    image = _render_background(rng)
    for _ in range(rng.integers(2, 6)):
        clutter = _draw_clutter(rng)
        _paint(image, clutter, _draw_color(rng))
    center = rng.uniform(88, 168, 2)
    radius = rng.uniform(60, 85)
    _paint_object(image, rng, center, radius, shape=SILHOUETTES[shape], texture=TEXTURES[texture])
    bar = _draw_bar(rng, center, radius)
    _paint(image, bar, _draw_color(rng))
    image *= _draw_light(rng)[..., None]
    grain = rng.integers(0, 256, image.shape, np.uint8)  # of a byte each, four times as fast
    image += (grain - np.float32(127.5)) * np.float32(rng.uniform(0.03, 0.12))
    return image.clip(0, 255, out=image).astype(np.uint8), label


def _render_images(seed: int, split: str, rows: range) -> Iterator[PreparedImage]:
    for index in rows:
        pixels, label = render(seed, split, index)
        yield PreparedImage(pixels.tobytes(), pixels, label, f"{split} {index}")


def _render_background(rng: Generator) -> Array:
    """A gradient between two colors with soft blotches."""
    gradient = _draw_gradient(rng) + 0.5
    blotches = _enlarge(rng.normal(0, 0.2, (9, 9)).astype(np.float32))
    mix = (gradient + blotches)[..., None]
    first = _draw_color(rng)
    second = _draw_color(rng)
    return second + mix * (first - second)


def _enlarge(coarse: Array) -> Array:
    """A coarse square in the image's size, bilinearly."""
    cells = len(coarse) - 1
    place = np.linspace(0, cells, SIZE, dtype=np.float32)
    low = np.minimum(place.astype(int), cells - 1)
    high = low + 1
    weight = place - low
    rows = coarse[low] * (1 - weight)[:, None] + coarse[high] * weight[:, None]
    enlarged: Array = rows[:, low] * (1 - weight) + rows[:, high] * weight
    return enlarged


def _paint_object(
    image: Array, rng: Generator, center: Array, radius: float, *, shape: str, texture: str
) -> None:
    x, y = _rotate_grid(center, _draw_angle(rng)) / radius
    mask = _fill(_measure_silhouette(shape, x, y) * radius)
    first, second = _draw_contrasting_colors(rng)
    pattern = _draw_texture(texture, rng)[..., None]
    _paint(image, mask, first * pattern + second * (1 - pattern))


def _paint(image: Array, mask: Array, color: Array) -> None:
    """Blends a color, or one color for each pixel, into the image where the mask is not 0."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    colors = color if color.ndim == 1 else color[box]
    part = image[box]
    part += mask[box][..., None] * (colors - part)


def _fill(distance: Array) -> Array:
    """The mask, antialiased, of a signed distance in pixels that is negative inside."""
    return (0.5 - distance).clip(0, 1)


def _rotate_grid(center: Array, angle: float) -> Array:
    """The pixels' coordinates (2, 256, 256) in a system at `center`, turned by `angle`."""
    x = GRID[0] - np.float32(center[0])
    y = GRID[1] - np.float32(center[1])
    cos = np.float32(np.cos(angle))
    sin = np.float32(np.sin(angle))
    return np.stack([cos * x + sin * y, cos * y - sin * x])


def _measure_silhouette(shape: str, x: Array, y: Array) -> Array:
    """The signed distance, roughly, to the outline of a shape of radius 1."""
    distance: Array
    match shape:
        case "disc":
            distance = np.hypot(x, y) - 0.85
        case "square":
            distance = np.maximum(abs(x), abs(y)) - 0.75
        case "triangle":
            distance = np.maximum(np.maximum(0.866 * abs(x) + 0.5 * y, -y) - 0.5, -2)
        case "star":  # a disc whose radius has five waves
            angle = np.arctan2(y, x)
            distance = (np.hypot(x, y) - (0.7 + 0.32 * np.cos(5 * angle))) * 0.6
        case _:  # a cross is two bars
            across = np.maximum(abs(x) - 0.95, abs(y) - 0.32)
            upright = np.maximum(abs(y) - 0.95, abs(x) - 0.32)
            distance = np.minimum(across, upright)
    return distance


def _draw_texture(texture: str, rng: Generator) -> Array:
    """Stripes or dots, (256, 256) in [0, 1]."""
    period = rng.uniform(9, 16)  # pixels
    grid = _rotate_grid(_draw_place(rng), _draw_angle(rng))
    x, y = grid * np.float32(2 * np.pi / period)
    wave = np.sin(x) if texture == "striped" else np.cos(x) + np.cos(y) - 0.5
    pattern: Array = (wave * 3 + 0.5).clip(0, 1)  # steep, so that edges are sharp
    return pattern


def _draw_clutter(rng: Generator) -> Array:
    """The mask of a small ellipse or a line."""
    x, y = _rotate_grid(_draw_place(rng), _draw_angle(rng))
    if rng.random() < 0.5:
        radius_x, radius_y = rng.uniform(10, 28, 2)
        return _fill((np.hypot(x / radius_x, y / radius_y) - 1) * min(radius_x, radius_y))
    half_length = rng.uniform(20, 70)
    half_width = rng.uniform(2, 5)
    return _fill(np.maximum(abs(x) - half_length, abs(y) - half_width))


def _draw_bar(rng: Generator, center: Array, radius: float) -> Array:
    """The mask of a bar over the object's side, which half of the images have."""
    if rng.random() < 0.5:
        return np.zeros((SIZE, SIZE), np.float32)
    x, y = _rotate_grid(center, _draw_angle(rng))
    half_width = rng.uniform(5, 11)
    return _fill(np.maximum(abs(x - 0.55 * radius) - half_width, abs(y) - 1.2 * radius))


def _draw_light(rng: Generator) -> Array:
    """A gradient of brightness, 0.6 to 1.2."""
    gradient = _draw_gradient(rng)
    brightness = rng.uniform(0.75, 1.05)
    return brightness + rng.uniform(0, 0.4) * gradient


def _draw_gradient(rng: Generator) -> Array:
    """From about -0.5 at one side or corner to 0.5 at the opposite one, (256, 256)."""
    x, _ = _rotate_grid(MIDDLE, _draw_angle(rng))
    gradient: Array = x / 360  # the diagonal is 362
    return gradient


def _draw_contrasting_colors(rng: Generator) -> tuple[Array, Array]:
    """Two colors whose gray levels differ by more than 90."""
    while True:
        first = _draw_color(rng)
        second = _draw_color(rng)
        if abs(first.mean() - second.mean()) > 90:
            return first, second


def _draw_color(rng: Generator) -> Array:
    return rng.uniform(20, 235, 3).astype(np.float32)


def _draw_place(rng: Generator) -> Array:
    return rng.uniform(0, SIZE, 2)


def _draw_angle(rng: Generator) -> float:
    return rng.uniform(0, 2 * np.pi)
