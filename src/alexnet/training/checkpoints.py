"""What a checkpoint file holds."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def weights_for(net: nn.Module, file: Path) -> dict[str, Tensor]:
    """The network's state dict in `file`. Raises ValueError if the file is torn or holds another network."""
    try:
        checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{file} is no whole checkpoint: {error}") from error
    weights = {k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items() if k.startswith("net.")}
    here = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    there = {name: tuple(value.shape) for name, value in weights.items()}
    different = [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in {**here, **there}
        if here.get(name) != there.get(name)
    ]
    if different:
        raise ValueError(f"{file} holds another network: {'; '.join(different[:3])} ({len(different)} differences)")
    return weights
