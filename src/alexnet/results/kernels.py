"""conv1's kernels, and how colorful those of each tower are (§6.1, Fig. 3)."""

import numpy as np
import torch
from torch import Tensor

from alexnet.errors import UserError
from alexnet.results.runs import Run

TOWERS = 2  # of networks whose towers are compared


def read_tower_kernels(run: Run) -> list[Tensor]:
    """The last kernels of each tower, (kernels, 3, height, width).

    None of them for networks without two towers, and without a last checkpoint.
    """
    file = run.folder / "checkpoints" / "last.ckpt"
    if run.options.get("model.towers") != TOWERS or not file.is_file():
        return []
    try:
        # Mapped, because a few kB of half a gigabyte are needed.
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch has no type of its own for a corrupt file
        raise UserError(
            f"checkpoint {file} is corrupt or incomplete: leave this run out of runs=…"
        ) from error
    kernels: Tensor = checkpoint["state_dict"]["net.conv1.weight"]
    return list(kernels.clone().chunk(TOWERS))


def measure_color_selectivity(kernels: Tensor) -> np.ndarray:
    """(kernels, 3, height, width) to (kernels,): which part of a kernel's energy is color.

    That is the part of its squared weights off the gray axis: 0 for a color-blind kernel, 2/3 on
    average for noise.
    """
    weights = kernels.double()
    gray = weights.mean(1, keepdim=True)  # the same in all channels
    color_energy = ((weights - gray) ** 2).flatten(1).sum(1)
    energy = (weights**2).flatten(1).sum(1).clamp_min(1e-300)  # of a kernel of zeros
    return (color_energy / energy).numpy()


def sort_by_color(kernels: Tensor) -> Tensor:
    """The kernels from the least to the most colorful."""
    order = np.argsort(measure_color_selectivity(kernels), kind="stable")
    return kernels[torch.from_numpy(order)]
