"""What happens to uint8 images that lie on the device: the training augmentation, and evaluation by ten views."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torchvision.transforms import v2

from alexnet.benchmarks.run import Candidate
from alexnet.benchmarks.step import CLASSES, Steps, ceilings, configuration, device, finish
from alexnet.data.augment import TEN_VIEWS
from alexnet.results.evaluate import ten_view_probabilities


def augment(cfg: DictConfig) -> list[Candidate]:
    """Bytes that can't be spared: a crop's as uint8 in, as float32 out."""
    train = configuration(cfg)
    eager, compiled = (instantiate(train.data).augment for _ in range(2))
    compiled.compile()
    images, ids = (
        _images(cfg, eager.crop + eager.border),
        torch.arange(cfg.batch_size, device=device()),
    )
    normalize = [v2.ToDtype(torch.float32), v2.Normalize([118.0] * 3, [1.0] * 3)]
    peer = v2.Compose([v2.RandomCrop(eager.crop), v2.RandomHorizontalFlip(), *normalize])
    planes = images.permute(0, 3, 1, 2)
    works = {
        "compiled": lambda: compiled.train(images, ids, 0),
        "eager": lambda: eager.train(images, ids, 0),
        "torchvision v2, one by one": lambda: [peer(image) for image in planes],
    }
    bytes_moved = eager.crop**2 * 3 * 5.0
    found = [
        Candidate(name, partial(_repeat, work, cfg), lambda: (0.0, bytes_moved))
        for name, work in works.items()
    ]
    return [*ceilings(train), *found]


def evaluate(cfg: DictConfig) -> list[Candidate]:
    train = configuration(cfg)
    data = instantiate(train.data)
    ours, peer = (
        Steps(net, train, "eager")
        for net in (instantiate(train.model), torchvision.models.alexnet(num_classes=CLASSES))
    )
    images = _images(cfg, data.store.size)

    def views() -> Tensor:
        return ten_view_probabilities(ours.net.eval(), data.augment, images)

    def ten_crop() -> Tensor:
        crops = torch.cat(
            v2.functional.ten_crop(images.permute(0, 3, 1, 2), [data.augment.crop] * 2)
        )
        return peer.net.eval()(crops.float()).softmax(1).unflatten(0, (TEN_VIEWS, -1)).mean(0)

    found = []
    for name, work, steps in (
        ("ours, ten views", views, ours),
        ("torchvision, ten_crop", ten_crop, peer),
    ):
        flop = TEN_VIEWS * steps.forward_flop / cfg.batch_size
        found.append(
            Candidate(
                name,
                partial(_repeat, partial(_inferred, work, steps), cfg),
                partial(tuple, (flop, 0.0)),
            )
        )
    return [*ceilings(train), *found]


def _images(cfg: DictConfig, size: int) -> Tensor:
    return torch.randint(
        0, 256, (cfg.batch_size, size, size, 3), dtype=torch.uint8, device=device()
    )


@torch.inference_mode()
def _inferred(work: Callable[[], Tensor], steps: Steps) -> None:
    with torch.autocast(device().type, torch.bfloat16, enabled=steps.mixed):
        work()


def _repeat(work: Callable[[], Any], cfg: DictConfig) -> int:
    for _ in range(cfg.steps):
        work()
    finish()
    return cfg.steps * cfg.batch_size
