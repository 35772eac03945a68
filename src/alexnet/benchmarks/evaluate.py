"""Evaluation by ten views of images that are on the device: ours and torchvision's."""

from collections.abc import Callable
from functools import partial

import torch
from omegaconf import DictConfig
from torch import Tensor
from torchvision.transforms import v2

from alexnet.benchmarks.augment import repeat
from alexnet.benchmarks.baselines import build_torchvision_network
from alexnet.benchmarks.candidate import Candidate, Cost
from alexnet.benchmarks.ceilings import list_ceilings
from alexnet.benchmarks.training_steps import (
    TrainingSteps,
    build_eager_network,
    choose_dtype,
    compose_training_config,
)
from alexnet.data.augment import TEN_VIEWS
from alexnet.data.datamodule import StoreData
from alexnet.options import build_object
from alexnet.results.evaluate import predict_ten_views


def list_candidates(config: DictConfig) -> list[Candidate]:
    training = compose_training_config(config)
    data: StoreData = build_object(training.data)
    ours = TrainingSteps(build_eager_network(training, fused=False), training, "eager")
    theirs = TrainingSteps(build_torchvision_network(), training, "eager")
    ours.net.eval()
    theirs.net.eval()
    size = data.store.size
    shape = (config.batch_size, size, size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=ours.device)

    def average_ten_views() -> Tensor:
        return predict_ten_views(ours.net, data.augment, images)

    def average_ten_crops() -> Tensor:
        crop = data.augment.crop
        # Ten batches, one for each crop.
        crops = v2.functional.ten_crop(images.permute(0, 3, 1, 2), [crop, crop])
        logits: Tensor = theirs.net(torch.cat(crops).float())
        return logits.softmax(1).view(TEN_VIEWS, len(images), -1).mean(0)

    candidates = list_ceilings(choose_dtype(training))
    for name, work, steps in (
        ("ours, ten views", average_ten_views, ours),
        ("torchvision, ten_crop", average_ten_crops, theirs),
    ):
        inference = partial(run_inference, work, steps)
        repeated = partial(repeat, inference, config.steps, config.batch_size)
        cost = Cost(flop=TEN_VIEWS * steps.forward_flop, bytes=0)
        candidates.append(Candidate(name, repeated, cost))
    return candidates


@torch.inference_mode()
def run_inference(work: Callable[[], Tensor], steps: TrainingSteps) -> None:
    """Does the work in the precision of the steps."""
    with steps.autocast():
        work()
