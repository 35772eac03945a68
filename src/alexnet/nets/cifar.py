"""The four-layer CIFAR-10 nets: Fig. 1's ReLU against tanh, and the 13 % and 11 % nets of §3.3."""

from math import sqrt
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from alexnet.errors import check_choice
from alexnet.nets.layers import Activation, build_activation
from alexnet.nets.norms import LocalResponseNorm

# The σ of the cfg files, made for ReLU, or Kaiming's √(2 / fan-in).
InitName = Literal["authors", "kaiming"]


class CifarConv4(nn.Sequential):
    """Three convolutions and a linear layer: Fig. 1's net in its likeliest form.

    The paper names no file; this is `layers-80sec.cfg` without weight decay. `width` multiplies the
    number of kernels.

    Shape: (n, 3, crop, crop) images, 0-255 less the mean, to (n, num_classes) logits.
    """

    def __init__(
        self,
        *,
        num_classes: PositiveInt = 10,
        width: PositiveFloat = 1.0,
        crop: Annotated[int, Ge(8)] = 32,
        activation: Activation = "relu",
        init: InitName = "authors",
    ):
        super().__init__()
        narrow = round(32 * width)
        wide = round(64 * width)
        side = crop // 8  # after three pools
        self.conv1 = nn.Conv2d(3, narrow, 5, padding=2)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.relu1 = build_activation(activation)
        self.conv2 = nn.Conv2d(narrow, narrow, 5, padding=2)
        self.relu2 = build_activation(activation)
        self.pool2 = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(narrow, wide, 5, padding=2)
        self.relu3 = build_activation(activation)
        self.pool3 = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.flatten = nn.Flatten()
        self.fc4 = nn.Linear(wide * side**2, num_classes)
        stds = {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc4": 0.01}
        _initialize_weights(self, stds, init)


class CifarLocal(nn.Sequential):
    """Two convolutions, two locally connected layers and a linear one.

    The 13 % net (`layers-conv-local-13pct.cfg`), or with `norm` the 11 % net: cross-map
    normalization (size 9, scale 0.001) and 64 kernels in local3 (`layers-cifar10-11pct.cfg`).

    Shape: (n, 3, crop, crop) images, 0-255 less the mean, to (n, num_classes) logits.
    """

    def __init__(
        self,
        *,
        num_classes: PositiveInt = 10,
        crop: Annotated[int, Ge(4)] = 24,
        norm: bool = False,
        init: InitName = "authors",
    ):
        super().__init__()
        side = crop // 4  # after two pools
        kernels = 64 if norm else 32  # of local3
        self.conv1 = nn.Conv2d(3, 64, 5, padding=2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        if norm:
            self.norm1 = LocalResponseNorm(9, 0.001, k=1.0)
        self.conv2 = nn.Conv2d(64, 64, 5, padding=2)
        self.relu2 = nn.ReLU()
        if norm:
            self.norm2 = LocalResponseNorm(9, 0.001, k=1.0)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.local3 = LocallyConnected(64, kernels, side)
        self.relu3 = nn.ReLU()
        self.local4 = LocallyConnected(kernels, 32, side)
        self.relu4 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc5 = nn.Linear(32 * side**2, num_classes)
        stds = {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc5": 0.01}
        _initialize_weights(self, stds, init)


class LocallyConnected(nn.Module):
    """A 3 × 3 convolution, padded by one, with weights of its own at every position.

    Shape: (n, inputs, side, side) to (n, outputs, side, side).
    """

    def __init__(self, inputs: int, outputs: int, side: int):
        super().__init__()
        self.side = side
        self.weight = nn.Parameter(torch.empty(outputs, inputs * 9, side * side))
        self.bias = nn.Parameter(torch.empty(outputs, side * side))

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 3, padding=1)
        # n: image; i: input of a patch; o: output; p: position.
        out = torch.einsum("nip,oip->nop", patches, self.weight) + self.bias
        return torch.unflatten(out, 2, (self.side, self.side))


def _initialize_weights(net: nn.Module, stds: dict[str, float], init: InitName) -> None:
    """Normally distributed weights and biases of zero, by the names of the layers."""
    check_choice("model.init", init, ("authors", "kaiming"))
    for name, std in stds.items():
        layer = net.get_submodule(name)
        weight = layer.get_parameter("weight")
        if init == "kaiming":
            is_local = isinstance(layer, LocallyConnected)
            fan_in = weight.shape[1] if is_local else weight[0].numel()
            std = sqrt(2 / fan_in)
        nn.init.normal_(weight, 0.0, std)
        nn.init.zeros_(layer.get_parameter("bias"))
