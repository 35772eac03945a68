"""ReLU, norm and pool of the paper's first two stages, forward and backward.

Our norm, torch's and none, eager and compiled; on a GPU also the fused stage.
"""

from collections.abc import Callable

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from alexnet.benchmarks.baselines import TorchNorm
from alexnet.benchmarks.candidate import Candidate, Cost
from alexnet.benchmarks.ceilings import list_ceilings, wait_for_device
from alexnet.benchmarks.traffic import count_compiled_bytes, count_eager_bytes
from alexnet.benchmarks.training_steps import choose_dtype, compose_training_config
from alexnet.devices import choose_device
from alexnet.nets.layers import compile_network
from alexnet.nets.norms import LocalResponseNorm

# Channels, height and width of what the convolutions of stages 1 and 2 return.
MAPS = ((96, 55, 55), (256, 27, 27))
StageBuilder = Callable[[], nn.Module]


def list_candidates(config: DictConfig) -> list[Candidate]:
    training = compose_training_config(config)
    batch_size = training.data.batch_size
    dtype = choose_dtype(training)
    # The compiler gives up after some versions of one function, and `forward` of all these stages
    # is one function.
    torch._dynamo.config.recompile_limit = 64
    candidates = list_ceilings(dtype)
    if choose_device("auto").type == "cuda":
        fused = Stages(build_fused_stage, batch_size, dtype, compiled=False)
        candidates.append(Candidate("fused", fused, fused.cost, "no norm, compiled"))
    builders: dict[str, StageBuilder] = {
        "ours": lambda: build_stage(build_norm()),
        "no norm": lambda: build_stage(nn.Identity()),
        "F.lrn": lambda: build_stage(TorchNorm(build_norm())),
    }
    for mode in ("compiled", "eager"):
        for name, build in builders.items():
            stages = Stages(build, batch_size, dtype, compiled=mode == "compiled")
            without = f"no norm, {mode}" if name != "no norm" else None
            candidates.append(Candidate(f"{name}, {mode}", stages, stages.cost, without))
    return candidates


def build_norm() -> LocalResponseNorm:
    """The paper's, with a group of channels for each tower."""
    return LocalResponseNorm(groups=2)


def build_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def build_stage(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.ReLU(), norm, build_pool())


def build_fused_stage() -> nn.Module:
    from alexnet.nets.fused import FusedStage  # Triton is not installed everywhere

    return FusedStage(build_norm(), build_pool())


class Stages:
    """Both stages, each with a batch of maps and of gradients."""

    def __init__(self, build: StageBuilder, batch_size: int, dtype: torch.dtype, *, compiled: bool):
        device = choose_device("auto")
        self.batch_size = batch_size
        self.passes_per_call = 30 if device.type == "cuda" else 1
        self.passes: list[tuple[nn.Module, Tensor, Tensor]] = []  # stage, input, output's gradient
        for shape in MAPS:
            stage = build()
            maps = torch.randn(batch_size, *shape, device=device, dtype=dtype)
            maps = maps.to(memory_format=torch.channels_last).requires_grad_()
            self.passes.append((stage, maps, torch.randn_like(stage(maps))))
            if compiled:
                compile_network(stage)
        # Counted in a first pass, in which a compiled stage is compiled.
        count_bytes = count_compiled_bytes if compiled else count_eager_bytes
        self.cost = Cost(flop=0, bytes=count_bytes(self.run_once) / batch_size)

    def __call__(self) -> int:
        for _ in range(self.passes_per_call):
            self.run_once()
        wait_for_device()
        return self.passes_per_call * self.batch_size

    def run_once(self) -> None:
        for stage, maps, gradient in self.passes:
            torch.autograd.grad(stage(maps), maps, gradient)
