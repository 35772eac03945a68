"""What a checkpoint file holds."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Lightning's checkpoint. Raises ValueError if the file is torn."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{file} is no whole checkpoint: {error}") from error


def weights_for(net: nn.Module, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of `net` in a checkpoint. Raises ValueError if it is another network's."""
    weights = {k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items() if k.startswith("net.")}
    here = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    there = {name: tuple(value.shape) for name, value in weights.items()}
    different = [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in {**here, **there}
        if here.get(name) != there.get(name)
    ]
    if different:
        raise ValueError(f"the checkpoint is of another network: {'; '.join(different[:3])}, {len(different)} in all")
    return weights
