"""Initial weights of AlexNet by name: the authors', Caffe's and others."""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

from torch import nn

from alexnet.errors import check_choice

InitName = Literal["authors", "paper_text", "caffe", "caffenet", "kaiming", "kaiming_small_conv1"]
# The biases of these layers start at `Initializer.bias`, so that their ReLUs start active (§5).
BIASED_LAYERS = ("conv2", "conv4", "conv5", "conv6", "fc6", "fc7")


@dataclass(frozen=True)
class Initializer:
    """Normally distributed weights, and the bias of the layers in BIASED_LAYERS.

    A layer's standard deviation is `stds[layer]`, else `std`; None means Kaiming's √(2 / fan-in).
    """

    std: float | None
    stds: dict[str, float]
    bias: float


INITIALIZERS: dict[InitName, Initializer] = {
    # layers-145.cfg. The paper's text has 0.01 everywhere, which makes the signal of three layers
    # 27 times smaller.
    "authors": Initializer(0.01, {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03, "conv6": 0.03}, 1.0),
    "paper_text": Initializer(0.01, {}, 1.0),
    # bvlc_alexnet; its readme says that a bias of 1 gave a flat loss.
    "caffe": Initializer(0.01, {"fc6": 0.005, "fc7": 0.005}, 0.1),
    "caffenet": Initializer(0.01, {"fc6": 0.005, "fc7": 0.005}, 1.0),
    "kaiming": Initializer(None, {}, 0.0),
    # Kaiming's, but for images whose standard deviation is near 3: a conv1 this small soon forgets
    # its initial noise.
    "kaiming_small_conv1": Initializer(None, {"conv1": 0.02}, 0.0),
}


def initialize_weights(net: nn.Module, name: InitName) -> None:
    """Fills every weight and bias of `net` by the names of its layers."""
    check_choice("model.init", name, INITIALIZERS)
    initializer = INITIALIZERS[name]
    for layer, module in net.named_children():
        if not hasattr(module, "weight"):
            continue
        weight = module.get_parameter("weight")
        std = initializer.stds.get(layer, initializer.std)
        if std is None:
            std = sqrt(2 / weight[0].numel())
        nn.init.normal_(weight, 0.0, std)
        bias = initializer.bias if layer in BIASED_LAYERS else 0.0
        nn.init.constant_(module.get_parameter("bias"), bias)
