"""Which device a command computes on."""

import torch

from alexnet.errors import UserError


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is the GPU if there is one, else the CPU.

    Raises UserError if torch cannot use it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device={name} can't be used, choose auto, cpu or cuda: {reason}"
        ) from error
