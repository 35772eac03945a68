"""The paper's Figures 3 and 4 (left) as images."""

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from alexnet.data.store.reader import Split


def kernels(weight: Tensor, towers: int, per_row: int = 16) -> Tensor:
    """(kernels, 3, height, width) to a (3, rows, columns) image in [0, 1], one tower above the other. Scaled by the
    whole layer's least and greatest weight, enlarged four times, as `shownet.py` of 2012 did."""
    span = weight.max() - weight.min()
    scaled = (
        ((weight - weight.min()) / span.clamp(min=1e-12))
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
    )
    grids = [
        make_grid(part, nrow=min(per_row, math.ceil(len(part) / 2)), padding=4)
        for part in scaled.chunk(towers)
    ]
    gap = torch.ones(3, 12, grids[0].shape[2])
    return torch.cat([piece for grid in grids for piece in (grid, gap)][:-1], 1)


def sample(split: Split, count: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """`count` images spread over the split, (count, size, size, 3) uint8, their labels and numbers."""
    rows = np.linspace(0, len(split) - 1, count).astype(np.int64)
    out = np.empty((count, split.size, split.size, 3), np.uint8)
    split.read(rows, out)
    return torch.from_numpy(out), split.labels[rows], rows


def predictions(
    images: Tensor, labels: np.ndarray, probabilities: Tensor, classes: list[str]
) -> Figure:
    """Each image over bars of its five likeliest classes, the right one pink as in the paper."""
    columns = 4
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(3 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, height_ratios=[3, 1.6] * rows)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        row, column = divmod(i, columns)
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        above.imshow(image.numpy())
        above.set_title(classes[label], fontsize=10)
        above.axis("off")
        top = probabilities[i, : len(classes)].topk(
            min(5, len(classes))
        )  # a net may have outputs to spare
        places = range(len(top.values))
        below.barh(
            places,
            top.values.numpy(),
            color=["#ffaaaa" if k == label else "#aaaaff" for k in top.indices],
        )
        for place, k in zip(places, top.indices.tolist(), strict=True):
            below.text(0.02, place, classes[k], va="center", fontsize=8)
        below.set(xlim=(0, 1), xticks=[], yticks=[])
        below.invert_yaxis()
    return figure
