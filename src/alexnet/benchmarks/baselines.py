"""What ours is measured against: torch's norm, torchvision's AlexNet and its ImageFolder."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from alexnet.benchmarks.training_steps import CLASSES
from alexnet.nets.norms import LocalResponseNorm, SpatialResponseNorm

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


class TorchNorm(nn.Module):
    """A response norm by torch's function, for each tower."""

    def __init__(self, norm: LocalResponseNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        towers = [
            F.local_response_norm(tower, norm.size, norm.alpha, beta=0.75, k=norm.k)
            for tower in x.chunk(norm.groups, dim=1)
        ]
        return torch.cat(towers, dim=1)


def replace_norms(net: nn.Module, make: Callable[[LocalResponseNorm], nn.Module]) -> nn.Module:
    """The network with other cross-map norms, and without spatial ones."""
    # The layers of all our networks are direct children.
    for name, layer in list(net.named_children()):
        if isinstance(layer, LocalResponseNorm):
            net.set_submodule(name, make(layer))
        elif isinstance(layer, SpatialResponseNorm):
            net.set_submodule(name, nn.Identity())
    return net


def build_torchvision_network() -> nn.Module:
    """torchvision's AlexNet: the one-GPU network of 2014, without norms."""
    net: nn.Module = torchvision.models.alexnet(num_classes=CLASSES)
    return net


def open_image_folder(folder: Path, transforms: list[nn.Module]) -> ImageFolder:
    return ImageFolder(str(folder), v2.Compose(transforms), loader=decode_file)


def decode_file(path: str) -> Tensor:
    """(3, height, width) uint8."""
    image: Tensor = decode_image(path, ImageReadMode.RGB)
    return image


def list_usual_transforms() -> list[nn.Module]:
    """Of full-size images, as in most training scripts."""
    return [
        v2.Resize(256, antialias=True),
        v2.RandomCrop(224),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
