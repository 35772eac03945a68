"""AlexNet (Krizhevsky, Sutskever & Hinton, NIPS 2012) and its recorded variants."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Interval, Len
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from alexnet.errors import UserError, check_choice
from alexnet.nets.initializers import InitName, initialize_weights
from alexnet.nets.layers import (
    Activation,
    Dropout,
    EdgePadding,
    GroupedLinear,
    build_activation,
)
from alexnet.nets.norms import LocalResponseNorm, SpatialResponseNorm

StageLayer = Literal["relu", "norm", "spatial_norm", "pool"]


class AlexNet(nn.Sequential):
    """The paper's Fig. 2 by default; every 2012 variant by keyword arguments.

    The layers are named `conv1`, `relu1`, `norm1`, `pool1`, … `fc8` and run in that order.
    Shape: (n, 3, crop, crop) float images, 0-255 less the mean, to (n, num_classes) logits.

    Arguments:
        num_classes: outputs of fc8.
        towers: blocks of kernels, a GPU each in 2012; conv2, conv4 and conv5 see only their own.
        communicate: False keeps the towers separate up to fc8 (net 150).
        channels: kernels of conv1 to conv5; a sixth number adds conv6 after the last pool, which
            sees both towers.
        hidden: units of fc6 and fc7.
        width: multiplies `channels` and `hidden`.
        crop: height and width of the input.
        conv1: kernel, stride and padding of conv1; padding null adds zeros at the right and bottom.
        paddings: of conv2 to conv5.
        pool: size and stride of the max-pools; output sizes are rounded up, as in cuda-convnet and
            Caffe.
        stage1, stage2, stage5: the layers that follow conv1, conv2 and conv5, in their order.
        norm_k: k of the response norm.
        norm_across_towers: whether its windows cross the border between towers, as in Caffe.
        activation: of every layer but fc8.
        dropout: probability with which a unit of fc6 or fc7 is dropped.
        without: a middle layer to leave out, with all that follows it but its pool (claim C8).
        init: name of the initializer.
    """

    def __init__(
        self,
        *,
        num_classes: PositiveInt = 1000,
        towers: PositiveInt = 2,
        communicate: bool = True,
        channels: Annotated[Sequence[PositiveInt], Len(5, 6)] = (96, 256, 384, 384, 256),
        hidden: tuple[PositiveInt, PositiveInt] = (4096, 4096),
        width: PositiveFloat = 1.0,
        crop: PositiveInt = 224,
        conv1: tuple[PositiveInt, PositiveInt, NonNegativeInt | None] = (11, 4, None),
        paddings: Annotated[Sequence[NonNegativeInt], Len(4, 4)] = (2, 1, 1, 1),
        pool: tuple[PositiveInt, PositiveInt] = (3, 2),
        stage1: Sequence[StageLayer] = ("relu", "norm", "pool"),
        stage2: Sequence[StageLayer] = ("relu", "norm", "pool"),
        stage5: Sequence[StageLayer] = ("relu", "pool"),
        norm_k: PositiveFloat = 2.0,
        norm_across_towers: bool = False,
        activation: Activation = "relu",
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
        without: Literal[2, 3, 4, 5, 6, 7] | None = None,
        init: InitName = "authors",
    ):
        super().__init__()
        check_choice("model.without", without, (None, 2, 3, 4, 5, 6, 7))
        self.towers = towers
        self.communicate = communicate
        self.norm_across_towers = norm_across_towers

        channels = [_scale_count(count, width, towers) for count in channels]
        units = [_scale_count(count, width, towers) for count in hidden]
        joined = 1 if communicate else towers  # groups of a layer that sees both towers in Fig. 2
        size, stride, padding = conv1
        # Number, kernels, and height and width of a kernel.
        convolutions = [
            _Convolution(1, channels[0], size, stride=stride, padding=padding or 0, then=stage1),
            _Convolution(2, channels[1], 5, padding=paddings[0], groups=towers, then=stage2),
            _Convolution(3, channels[2], 3, padding=paddings[1], groups=joined),
            _Convolution(4, channels[3], 3, padding=paddings[2], groups=towers),
            _Convolution(5, channels[4], 3, padding=paddings[3], groups=towers, then=stage5),
        ]
        if len(channels) == 6:
            convolutions.append(_Convolution(6, channels[5], 3, padding=1))
        norm_groups = 1 if norm_across_towers else towers
        builders: dict[str, Callable[[], nn.Module]] = {
            "relu": partial(build_activation, activation),
            "norm": partial(LocalResponseNorm, k=norm_k, groups=norm_groups),
            "spatial_norm": SpatialResponseNorm,
            "pool": partial(nn.MaxPool2d, *pool, ceil_mode=True),
        }

        if padding is None:
            self.edge = EdgePadding(size, stride)
        inputs = 3  # channels that the next convolution sees
        for conv in convolutions:
            layer = conv.build_layer(inputs)  # even if left out, so that the same numbers are drawn
            followers = conv.then
            if conv.number == without:
                followers = [name for name in followers if name == "pool"]
            else:
                self.add_module(f"conv{conv.number}", layer)
                inputs = conv.outputs
            for name in followers:
                check_choice(f"model.stage{conv.number}", name, builders)
                self.add_module(f"{name}{conv.number}", builders[name]())

        # From here on the inputs are units: fc6 sees the last maps of both towers (§3.5).
        self.flatten = nn.Flatten()
        inputs = _count_features(self, crop)
        for number, outputs in zip((6, 7), units, strict=True):
            linear = _build_linear(inputs, outputs, groups=joined)
            if number != without:
                self.add_module(f"fc{number}", linear)
                self.add_module(f"relu{number}", build_activation(activation))
                self.add_module(f"dropout{number}", Dropout(dropout, number))
                inputs = outputs
        self.fc8 = nn.Linear(inputs, num_classes)
        initialize_weights(self, init)


@dataclass(frozen=True)
class _Convolution:
    """A convolution as Fig. 2 draws it, and the layers that follow it."""

    number: int
    outputs: int
    size: int  # of a kernel
    _: KW_ONLY
    padding: int
    stride: int = 1
    groups: int = 1
    then: Sequence[StageLayer] = ("relu",)

    def build_layer(self, inputs: int) -> nn.Conv2d:
        return nn.Conv2d(
            inputs, self.outputs, self.size, self.stride, self.padding, groups=self.groups
        )


def _scale_count(count: int, width: float, towers: int) -> int:
    """`count · width`, rounded to a multiple of the towers."""
    return max(round(count * width / towers), 1) * towers


def _build_linear(inputs: int, outputs: int, groups: int) -> nn.Module:
    if groups == 1:
        return nn.Linear(inputs, outputs)
    return GroupedLinear(inputs, outputs, groups)


def _count_features(net: nn.Module, crop: int) -> int:
    """Features of an image after the layers so far.

    Raises UserError if the crop is too small for them.
    """
    try:
        with torch.no_grad():
            features: Tensor = net(torch.zeros(1, 3, crop, crop))
    except RuntimeError as error:
        raise UserError(
            f"model.crop={crop} is too small for this network's convolutions and pools"
        ) from error
    return features.shape[1]
