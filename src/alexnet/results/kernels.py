"""Fig. 3: conv1's kernels by tower, and how colorful each is."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alexnet.results.runs import Run


def conv1(run: Run) -> Tensor | None:
    """A run's last kernels of the first layer, (kernels, 3, height, width); None if it has no two towers."""
    file = run.folder / "checkpoints" / "last.ckpt"
    if run.options.get("model.towers") != 2 or not file.is_file():
        return None
    checkpoint = torch.load(
        file, map_location="cpu", weights_only=True, mmap=True
    )  # a few kB of half a gigabyte
    return checkpoint["state_dict"]["net.conv1.weight"].clone()


def selectivity(kernels: Tensor) -> np.ndarray:
    """(kernels, 3, height, width) to (kernels,): the share of each kernel's energy that lies off the gray axis, 0 for a
    color-blind one; 2/3 for noise."""
    wide = kernels.double()
    gray = wide.mean(1, keepdim=True)
    off = ((wide - gray) ** 2).flatten(1).sum(1)
    return (off / (wide**2).flatten(1).sum(1).clamp_min(1e-300)).numpy()


def kernel_images(weight: Tensor, towers: int) -> list[Image.Image]:
    """A image for each tower, all on one scale, sorted by color selectivity."""
    span = (weight.max() - weight.min()).clamp_min(1e-12)
    images = []
    for raw in weight.chunk(towers):
        tower = (raw - weight.min()) / span
        order = np.argsort(selectivity(raw), kind="stable")
        columns = min(12, len(tower))
        rows, side = math.ceil(len(tower) / columns), weight.shape[-1]
        canvas = torch.zeros(4, rows * (side + 1) - 1, columns * (side + 1) - 1)
        for place, i in enumerate(order.tolist()):
            y, x = (side + 1) * (place // columns), (side + 1) * (place % columns)
            canvas[:3, y : y + side, x : x + side] = tower[i]
            canvas[3, y : y + side, x : x + side] = 1
        pixels = (canvas.permute(1, 2, 0) * 255).round().byte().numpy()
        images.append(Image.fromarray(pixels))
    return images
