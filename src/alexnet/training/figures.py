"""The paper's Figures 3 and 4 (left), for TensorBoard and the report."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from alexnet.data.store import Split

COLUMNS = 12  # of Fig. 3, for each tower
TOP = 5
PINK = "#ffaaaa"  # the right class in Fig. 4
BLUE = "#aaaaff"


class Sample(NamedTuple):
    """Images (n, size, size, 3) uint8, with their labels and numbers, (n,), in their split."""

    images: Tensor
    labels: np.ndarray
    rows: np.ndarray


def sample_images(split: Split, count: int) -> Sample:
    """`count` images at equal distances in the split, the first and the last among them."""
    rows = np.linspace(0, len(split) - 1, count).astype(np.int64)
    return Sample(torch.from_numpy(split.images(rows)), split.labels[rows], rows)


def draw_kernels(weight: Tensor, towers: int) -> list[Image.Image]:
    """Fig. 3: an RGBA image of each tower's share of (kernels, 3, side, side), a pixel a weight.

    All are on one scale, from the layer's least weight (0) to its greatest (255), as in
    `shownet.py` of 2012. Kernels are one transparent pixel from each other.
    """
    span = (weight.max() - weight.min()).clamp_min(1e-12)
    scaled = (weight - weight.min()) / span
    return [_arrange_kernels(kernels) for kernels in scaled.chunk(towers)]


def _arrange_kernels(kernels: Tensor) -> Image.Image:
    side = kernels.shape[-1]
    pitch = side + 1
    columns = min(COLUMNS, len(kernels))
    rows = math.ceil(len(kernels) / columns)
    # Red, green, blue and opacity: transparent but for the kernels.
    canvas = torch.zeros(4, rows * pitch - 1, columns * pitch - 1)
    for place, kernel in enumerate(kernels):
        top = pitch * (place // columns)
        left = pitch * (place % columns)
        canvas[:3, top : top + side, left : left + side] = kernel
        canvas[3, top : top + side, left : left + side] = 1
    pixels = (canvas.permute(1, 2, 0) * 255).round().byte()
    return Image.fromarray(pixels.numpy())


def stack_images(images: Sequence[Image.Image], zoom: int) -> Image.Image:
    """One image above the other, enlarged, with a transparent gap of a pixel before the zoom."""
    width = max(image.width for image in images)
    height = sum(image.height + 1 for image in images) - 1
    canvas = Image.new("RGBA", (width, height))
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height + 1
    return canvas.resize((zoom * width, zoom * height), Image.Resampling.NEAREST)


def find_likeliest(probabilities: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The five greatest of (n, outputs) probabilities and their classes, both (n, 5)."""
    top = probabilities[:, :classes].topk(min(TOP, classes), 1)  # there may be more outputs
    return top.values, top.indices


def draw_predictions(
    images: Tensor, labels: np.ndarray, probabilities: Tensor, classes: list[str]
) -> Figure:
    """Fig. 4 (left): each image above bars of its five likeliest classes, the right one pink."""
    columns = 4
    rows = math.ceil(len(images) / columns)
    # Two rows of axes for each row of images: the images and, below them, the bars.
    figure = Figure(figsize=(3 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, height_ratios=[3, 1.6] * rows)
    values, likeliest = find_likeliest(probabilities, len(classes))
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(i, columns)
        above = axes[2 * row, column]
        above.imshow(images[i].numpy())
        above.set_title(classes[label], fontsize=10)
        above.axis("off")
        below = axes[2 * row + 1, column]
        names = [classes[k] for k in likeliest[i].tolist()]
        is_right = (likeliest[i] == label).tolist()
        _draw_bars(below, values[i].tolist(), names, is_right)
    return figure


def _draw_bars(
    axes: Axes, values: Sequence[float], names: Sequence[str], is_right: Sequence[bool]
) -> None:
    colors = [PINK if right else BLUE for right in is_right]
    axes.barh(range(len(values)), values, color=colors)
    for place, name in enumerate(names):
        axes.text(0.02, place, name, va="center", fontsize=8)
    axes.set(xlim=(0, 1), xticks=[], yticks=[])
    axes.invert_yaxis()  # the likeliest class on top
