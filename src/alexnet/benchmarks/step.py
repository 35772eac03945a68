"""Training steps on a batch that stays on the device.

Our network, the same network with torch's norms and without norms, and torchvision's AlexNet, each
eager and compiled; on a GPU also the fused network, and all of them as CUDA graphs.
"""

from collections.abc import Callable
from functools import partial

import torch
from omegaconf import DictConfig
from torch import nn

from alexnet.benchmarks.baselines import TorchNorm, build_torchvision_network, replace_norms
from alexnet.benchmarks.candidate import Candidate
from alexnet.benchmarks.ceilings import list_ceilings
from alexnet.benchmarks.training_steps import (
    Mode,
    TrainingSteps,
    build_eager_network,
    choose_dtype,
    compose_training_config,
)
from alexnet.devices import choose_device
from alexnet.options import build_object

# Networks whose norms' share of the time is shown.
WITH_NORMS = ("fused", "ours", "F.lrn")


def list_candidates(config: DictConfig) -> list[Candidate]:
    training = compose_training_config(config)
    # The compiler gives up after some versions of one function, and `forward` of all these networks
    # is one function.
    torch._dynamo.config.recompile_limit = 64
    modes: list[Mode] = ["compiled", "eager"]
    networks = list_networks(training)
    if choose_device("auto").type == "cuda":
        modes.insert(0, "graphs")
        networks = {"fused": partial(build_eager_network, training, fused=True), **networks}
    candidates = list_ceilings(choose_dtype(training))
    for mode in modes:
        for name, build in networks.items():
            steps = TrainingSteps(build(), training, mode)
            without = f"no norms, {mode}" if name in WITH_NORMS else None
            candidates.append(Candidate(f"{name}, {mode}", steps, steps.cost, without))
    return candidates


def list_networks(training: DictConfig) -> dict[str, Callable[[], nn.Module]]:
    """What builds each network, by name; the last is the baseline."""

    def build_without_norms() -> nn.Module:
        return replace_norms(build_object(training.model), lambda norm: nn.Identity())

    def build_with_torch_norms() -> nn.Module:
        return replace_norms(build_object(training.model), TorchNorm)

    return {
        "ours": partial(build_eager_network, training, fused=False),
        "no norms": build_without_norms,
        "torchvision": build_torchvision_network,
        "F.lrn": build_with_torch_norms,
    }
