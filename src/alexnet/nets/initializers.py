"""How weights begin, by name. Biases of the layers in `ones` start at `bias`, so that their ReLUs begin alive (§5)."""

from dataclasses import dataclass
from math import sqrt

from torch import nn


@dataclass(frozen=True)
class Initializer:
    """Normal weights of standard deviation `std`, or of `stds[layer]`; None means Kaiming's √(2 / fan-in)."""

    std: float | None
    stds: dict[str, float]
    bias: float


INITIALIZERS = {
    # layers-145.cfg. The paper's text has 0.01 everywhere, which makes the signal of three layers 27 times smaller.
    "authors": Initializer(0.01, dict.fromkeys(("conv3", "conv4", "conv5", "conv6"), 0.03), 1.0),
    "paper_text": Initializer(0.01, {}, 1.0),
    # bvlc_alexnet; its readme says that a bias of 1 gave a flat loss.
    "caffe": Initializer(0.01, dict.fromkeys(("fc6", "fc7"), 0.005), 0.1),
    "caffenet": Initializer(0.01, dict.fromkeys(("fc6", "fc7"), 0.005), 1.0),
    "kaiming": Initializer(None, {}, 0.0),
    # Kaiming's, but for images of a standard deviation near 3: a conv1 so small soon forgets its noise.
    "kaiming_small_conv1": Initializer(None, {"conv1": 0.02}, 0.0),
}
ONES = ("conv2", "conv4", "conv5", "conv6", "fc6", "fc7")


def initialize(net: nn.Module, name: str) -> None:
    """Fills every weight and bias of `net` by layer name. Raises ValueError if `name` is unknown."""
    if name not in INITIALIZERS:
        raise ValueError(f"model.init={name} is not known; choose one of {', '.join(INITIALIZERS)}")
    chosen = INITIALIZERS[name]
    for layer, module in net.named_children():
        if not hasattr(module, "weight"):
            continue
        std = chosen.stds.get(layer, chosen.std)
        weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
        nn.init.normal_(weight, 0.0, sqrt(2 / weight[0].numel()) if std is None else std)
        nn.init.constant_(bias, chosen.bias if layer in ONES else 0.0)
