"""The four-layer CIFAR-10 nets: Fig. 1's ReLU against tanh, and the 13 % and 11 % nets of §3.3."""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.nets.layers import LocalResponseNorm, build_activation


class CifarConv4(nn.Sequential):
    """Three convolutions and a linear layer, Fig. 1's net in its likeliest form (`layers-80sec.cfg` without decay; the
    paper names no file).

    Shape: (n, 3, crop, crop) images, 0-255 less the mean, to (n, num_classes) logits.
    width multiplies the kernels; activation is relu or tanh; init `authors` has the file's σ, made for relu, and
    `kaiming` √(2 / fan-in).
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        width: float = 1.0,
        crop: int = 32,
        activation: str = "relu",
        init: str = "authors",
    ):
        super().__init__()
        first, third = round(32 * width), round(64 * width)
        side = crop // 8  # after three pools
        self.conv1 = nn.Conv2d(3, first, 5, padding=2)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.relu1 = build_activation(activation)
        self.conv2 = nn.Conv2d(first, first, 5, padding=2)
        self.relu2 = build_activation(activation)
        self.pool2 = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(first, third, 5, padding=2)
        self.relu3 = build_activation(activation)
        self.pool3 = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.flatten = nn.Flatten()
        self.fc4 = nn.Linear(third * side**2, num_classes)
        _initialize(self, {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc4": 0.01}, init)


class CifarLocal(nn.Sequential):
    """Two convolutions, two locally connected layers and a linear one: `layers-conv-local-13pct.cfg`; with `norm` the
    11 % net's cross-map normalization (size 9, scale 0.001; `layers-cifar10-11pct.cfg`, local3 with 64 kernels).

    Shape: (n, 3, crop, crop) images, 0-255 less the mean, to (n, num_classes) logits.
    """

    def __init__(
        self, *, num_classes: int = 10, crop: int = 24, norm: bool = False, init: str = "authors"
    ):
        super().__init__()
        side = crop // 4
        local3 = 64 if norm else 32
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
        self.local3 = LocallyConnected(64, local3, side)
        self.relu3 = nn.ReLU()
        self.local4 = LocallyConnected(local3, 32, side)
        self.relu4 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc5 = nn.Linear(32 * side**2, num_classes)
        _initialize(
            self, {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc5": 0.01}, init
        )


class LocallyConnected(nn.Module):
    """A 3 × 3 convolution, padded by one, whose weights differ at every position.

    Shape: (n, inputs, side, side) to (n, outputs, side, side).
    """

    def __init__(self, inputs: int, outputs: int, side: int):
        super().__init__()
        self.side = side
        self.weight = nn.Parameter(torch.empty(outputs, inputs * 9, side * side))
        self.bias = nn.Parameter(torch.empty(outputs, side * side))

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 3, padding=1)
        out = torch.einsum("nip,oip->nop", patches, self.weight) + self.bias
        return out.unflatten(2, (self.side, self.side))


def _initialize(net: nn.Module, stds: dict[str, float], init: str) -> None:
    if init not in ("authors", "kaiming"):
        raise ValueError(f"model.init={init} is not known; choose one of source_2012, kaiming")
    for name, module in net.named_children():
        if name in stds:
            weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
            fan_in = weight.shape[1] if name.startswith("local") else weight[0].numel()
            nn.init.normal_(weight, 0.0, stds[name] if init == "authors" else sqrt(2 / fan_in))
            nn.init.zeros_(bias)
