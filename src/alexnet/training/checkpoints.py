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


def select_weights(net: nn.Module, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of `net` in a checkpoint. Raises ValueError if it is another network's."""
    weights = {
        k.removeprefix("net."): v
        for k, v in checkpoint["state_dict"].items()
        if k.startswith("net.")
    }
    here = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    there = {name: tuple(value.shape) for name, value in weights.items()}
    different = [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in {**here, **there}
        if here.get(name) != there.get(name)
    ]
    if different:
        raise ValueError(
            f"the checkpoint is of another network: {'; '.join(different[:3])}, {len(different)} in all"
        )
    return weights


def load_initial_weights(net: nn.Module, file: Path, layers: list[str] | None) -> None:
    """Copies `layers` (all: None) of another run's checkpoint into `net`. Raises ValueError if they don't fit."""
    there = {
        k.removeprefix("net."): v
        for k, v in read_checkpoint(file)["state_dict"].items()
        if k.startswith("net.")
    }
    here = net.state_dict()
    wanted = [name for name in here if layers is None or name.split(".")[0] in layers]
    absent = [
        layer for layer in layers or [] if not any(name.split(".")[0] == layer for name in here)
    ]
    unlike = [name for name in wanted if name not in there or there[name].shape != here[name].shape]
    if absent or unlike:
        problems = [f"{name} is not in the network" for name in absent]
        problems += [f"{name} has another shape there, or is missing" for name in unlike]
        raise ValueError(
            f"start.run={file.parent.parent}: {'; '.join(problems[:3])}. Choose start.layers"
        )
    net.load_state_dict({name: there[name] for name in wanted}, strict=False)
