"""Layers that torch does not have in the authors' form, and how a network is compiled."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import rng
from alexnet.errors import UserError, check_choice

Activation = Literal["relu", "tanh"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Dropout(nn.Module):
    """The paper's dropout (§4.2): units are zeroed in training and not scaled up.

    At test all units are multiplied by 1 - p. torch's `nn.Dropout` divides by 1 - p in training
    instead, which amounts to another learning rate.

    Attributes:
        keys: (n,) int64, one for each image. Whether a unit is dropped depends only on its image's
            key, `layer` and the unit's number in the whole layer. If None, torch draws.
        shard: which block of the layer's units the input holds; 0 if it holds all of them.

    Shape: (n, units).
    """

    def __init__(self, p: float = 0.5, layer: int = 0):
        super().__init__()
        if not 0 <= p < 1:
            raise UserError(f"model.dropout={p} must be at least 0 and less than 1")
        self.p = p
        self.layer = layer
        self.shard = 0
        self.keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x * (1 - self.p)
        if self.p == 0:
            return x
        if self.keys is None:
            return x * (torch.rand_like(x, dtype=torch.float32) >= self.p)
        units = x.shape[1]
        first_draw = (self.layer << 16) + self.shard * units  # layers have fewer units than 2^16
        return x * (rng.draw_uniform(self.keys, first_draw, units) >= self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class EdgePadding(nn.Module):
    """Zeros at the right and bottom until windows of `kernel` at `stride` cover the image.

    cuda-convnet rounded output sizes up and let the last window hang over the edge. For conv1's
    11/4, 224 pixels become 227.
    """

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        right = -(width - self.kernel) % self.stride
        bottom = -(height - self.kernel) % self.stride
        return F.pad(x, (0, right, 0, bottom))


class GroupedLinear(nn.Module):
    """A linear layer of `groups` blocks, each of which sees its own block of the inputs.

    Shape: (n, inputs) to (n, outputs); weight (outputs, inputs / groups), as in a grouped
    convolution.
    """

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.in_features = inputs
        self.out_features = outputs
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        blocks = torch.unflatten(x, 1, (self.groups, -1)).transpose(0, 1)
        weights = torch.unflatten(self.weight, 0, (self.groups, -1)).transpose(1, 2)
        return torch.bmm(blocks, weights).transpose(0, 1).flatten(1) + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, groups={self.groups}"


def build_activation(name: Activation) -> nn.Module:
    check_choice("model.activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def compile_network(net: nn.Module, mode: str | None = None) -> None:
    """Compiles the network as one graph; checkpoints keep their names.

    `net.compile()` of torch 2.14 does the same, but 2.11's compiles the layers of an
    `nn.Sequential` one by one.
    """
    net.forward = torch.compile(net.forward, dynamic=False, mode=mode)
