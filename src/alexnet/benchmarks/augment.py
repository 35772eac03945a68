"""The training augmentation of uint8 images that are on the device: ours and torchvision's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torchvision.transforms import v2

from alexnet.benchmarks.candidate import Candidate, Cost
from alexnet.benchmarks.ceilings import list_ceilings, wait_for_device
from alexnet.benchmarks.training_steps import choose_dtype, compose_training_config
from alexnet.data.augment import Augment
from alexnet.devices import choose_device
from alexnet.options import build_object

CHANNELS = 3
FLOAT_BYTES = 4


def list_candidates(config: DictConfig) -> list[Candidate]:
    training = compose_training_config(config)
    device = choose_device("auto")
    ours: Augment = build_object(training.data).augment
    compiled: Augment = build_object(training.data).augment
    compiled.compile()
    theirs = v2.Compose(
        [
            v2.RandomCrop(ours.crop),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32),
            v2.Normalize([118.0] * CHANNELS, [1.0] * CHANNELS),
        ]
    )
    size = ours.crop + ours.border
    shape = (config.batch_size, size, size, CHANNELS)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    channels_first = images.permute(0, 3, 1, 2)
    ids = torch.arange(config.batch_size, device=device)
    # torchvision draws one crop for all images of a batch, so it gets them one by one.
    works: dict[str, Callable[[], Any]] = {
        "compiled": lambda: compiled.crop_randomly(images, ids, epoch=0),
        "eager": lambda: ours.crop_randomly(images, ids, epoch=0),
        "torchvision v2, one by one": lambda: [theirs(image) for image in channels_first],
    }
    # The least there is: each value of the crop is read as a byte and written as a float.
    cost = Cost(flop=0, bytes=ours.crop**2 * CHANNELS * (1 + FLOAT_BYTES))
    candidates = list_ceilings(choose_dtype(training))
    for name, work in works.items():
        repeated = partial(repeat, work, config.steps, config.batch_size)
        candidates.append(Candidate(name, repeated, cost))
    return candidates


def repeat(work: Callable[[], Any], times: int, batch_size: int) -> int:
    """Does the work on a batch several times and returns the number of images."""
    for _ in range(times):
        work()
    wait_for_device()
    return times * batch_size
