"""AlexNet (Krizhevsky, Sutskever & Hinton, NIPS 2012) and its recorded variants, as one list of layers."""

from collections.abc import Sequence

import torch
from torch import nn

from alexnet.nets.initializers import initialize
from alexnet.nets.layers import (
    Dropout,
    EdgePadding,
    GroupedLinear,
    LocalResponseNorm,
    SpatialResponseNorm,
    build_activation,
)


class AlexNet(nn.Sequential):
    """The paper's Fig. 2 by default; every 2012 variant by keyword arguments.

    Layers run in the order in which they are named: `conv1`, `relu1`, `norm1`, `pool1`, … `fc8`.
    Shape: (n, 3, crop, crop) float images, 0-255 less the mean, to (n, num_classes) logits.

    Arguments:
        num_classes: outputs of fc8.
        towers: blocks of kernels; conv2, conv4 and conv5 see their own tower alone (a GPU each in 2012).
        communicate: False keeps the towers separate_layers up to fc8 (net 150).
        channels: kernels of conv1 to conv5; a sixth number adds conv6, which sees both towers, after the last pool.
        hidden: units of fc6 and fc7.
        width: multiplies channels and hidden.
        crop: height and width of the input.
        conv1: kernel, stride and padding of conv1; padding null adds zeros at the right and bottom edge.
        paddings: of conv2 to conv5.
        pool: size and stride of the max-pools; output sizes are rounded up, as in cuda-convnet and Caffe.
        stage1, stage2, stage5: what follows conv1, conv2 and conv5: relu, norm, spatial_norm, pool, in any order.
        norm_k: k of the response norm. norm_across_towers: Caffe's form, whose windows cross the towers' border.
        activation: relu or tanh.
        dropout: share of the units of fc6 and fc7 that is dropped.
        without: a middle layer, 2 to 7, to leave out with all that follows it but its pool (claim C8).
        init: name of the initializer.
    Raises ValueError for a value outside these.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        towers: int = 2,
        communicate: bool = True,
        channels: Sequence[int] = (96, 256, 384, 384, 256),
        hidden: Sequence[int] = (4096, 4096),
        width: float = 1.0,
        crop: int = 224,
        conv1: tuple[int, int, int | None] = (11, 4, None),
        paddings: Sequence[int] = (2, 1, 1, 1),
        pool: Sequence[int] = (3, 2),
        stage1: Sequence[str] = ("relu", "norm", "pool"),
        stage2: Sequence[str] = ("relu", "norm", "pool"),
        stage5: Sequence[str] = ("relu", "pool"),
        norm_k: float = 2.0,
        norm_across_towers: bool = False,
        activation: str = "relu",
        dropout: float = 0.5,
        without: int | None = None,
        init: str = "authors",
    ):
        super().__init__()
        if without not in (None, 2, 3, 4, 5, 6, 7):
            raise ValueError(f"model.without={without} must be null or a middle layer, 2 to 7")
        channels = [_scaled(count, width, towers) for count in channels]
        hidden = [_scaled(count, width, towers) for count in hidden]
        joined = 1 if communicate else towers
        self.towers, self.communicate, self.norm_across_towers = (
            towers,
            communicate,
            norm_across_towers,
        )
        make = {
            "relu": lambda number: build_activation(activation),
            "norm": lambda number: LocalResponseNorm(
                k=norm_k, groups=1 if norm_across_towers else towers
            ),
            "spatial_norm": lambda number: SpatialResponseNorm(),
            "pool": lambda number: nn.MaxPool2d(pool[0], pool[1], ceil_mode=True),
            "dropout": lambda number: Dropout(dropout, number),
        }
        seen = 3  # channels, then units, that the next layer sees

        def add(
            number: int, outputs: int, layer: nn.Module, then: Sequence[str] = ("relu",)
        ) -> None:
            nonlocal seen
            if number == without:
                then = [name for name in then if name == "pool"]
            else:
                self.add_module(
                    f"conv{number}" if isinstance(layer, nn.Conv2d) else f"fc{number}", layer
                )
                seen = outputs
            for name in then:
                if name not in make:
                    raise ValueError(
                        f"model.stage{number}: {name} is not known; choose from {', '.join(make)}"
                    )
                self.add_module(f"{name}{number}", make[name](number))

        kernel, stride, padding = conv1
        if padding is None:
            self.edge = EdgePadding(kernel, stride)
        add(1, channels[0], nn.Conv2d(seen, channels[0], kernel, stride, padding or 0), stage1)
        add(2, channels[1], nn.Conv2d(seen, channels[1], 5, 1, paddings[0], groups=towers), stage2)
        add(3, channels[2], nn.Conv2d(seen, channels[2], 3, 1, paddings[1], groups=joined))
        add(4, channels[3], nn.Conv2d(seen, channels[3], 3, 1, paddings[2], groups=towers))
        add(5, channels[4], nn.Conv2d(seen, channels[4], 3, 1, paddings[3], groups=towers), stage5)
        if len(channels) == 6:
            add(6, channels[5], nn.Conv2d(seen, channels[5], 3, 1, 1))
        self.flatten = nn.Flatten()
        seen = self._features(crop)
        for number, units in zip((6, 7), hidden, strict=True):
            add(number, units, _linear(seen, units, joined), ("relu", "dropout"))
        self.fc8 = nn.Linear(seen, num_classes)
        initialize(self, init)

    def _features(self, crop: int) -> int:
        """Features of a image after the layers so far. Raises ValueError if the crop is too small for them."""
        try:
            with torch.no_grad():
                return self(torch.zeros(1, 3, crop, crop)).shape[1]
        except RuntimeError as error:
            raise ValueError(
                f"model.crop={crop} is too small for this network's convolutions and pools"
            ) from error


def _linear(inputs: int, outputs: int, groups: int) -> nn.Module:
    return nn.Linear(inputs, outputs) if groups == 1 else GroupedLinear(inputs, outputs, groups)


def _scaled(count: int, width: float, towers: int) -> int:
    """`count · width`, a multiple of the towers."""
    return max(round(count * width / towers), 1) * towers
