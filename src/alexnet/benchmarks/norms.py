"""ReLU, norm and pool of the paper's first two stages, forward and backward: ours and torch's, eager and compiled."""

from collections.abc import Callable

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from alexnet.benchmarks.run import Candidate
from alexnet.benchmarks.step import (
    TorchNorm,
    ceilings,
    compiled_bytes,
    configuration,
    device,
    eager_bytes,
    finish,
)
from alexnet.nets.layers import LocalResponseNorm, compile_network

SHAPES = ((96, 55, 55), (256, 27, 27))


def list_candidates(cfg: DictConfig) -> list[Candidate]:
    train = configuration(cfg)
    forms: dict[str, Callable[[], nn.Module]] = {
        "ours": lambda: _stage(LocalResponseNorm(groups=2)),
        "no norm": lambda: _stage(nn.Identity()),
        "F.lrn": lambda: _stage(TorchNorm(LocalResponseNorm(groups=2))),
    }
    torch._dynamo.config.recompile_limit = 64  # of one function, and all stages share theirs
    found = []
    for mode in ("compiled", "eager"):
        for name, make in forms.items():
            stages = Stages(make, train, mode == "compiled")
            without = f"no norm, {mode}" if name != "no norm" else None
            found.append(Candidate(f"{name}, {mode}", stages, stages.cost, without))
    if device().type == "cuda":
        from alexnet.nets.fused import FusedStage

        stages = Stages(
            lambda: FusedStage(LocalResponseNorm(groups=2), nn.MaxPool2d(3, 2, ceil_mode=True)),
            train,
            False,
        )
        found.insert(0, Candidate("fused", stages, stages.cost, "no norm, compiled"))
    return [*ceilings(train), *found]


def _stage(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.ReLU(), norm, nn.MaxPool2d(3, 2, ceil_mode=True))


class Stages:
    """Both stages on a batch each of what their convolutions give."""

    def __init__(self, make: Callable[[], nn.Module], train: DictConfig, compiled: bool):
        dtype = torch.bfloat16 if train.trainer.precision == "bf16-mixed" else torch.float32
        self.n, self.count = train.data.batch_size, 30 if device().type == "cuda" else 1
        self.work: list[tuple[nn.Module, Tensor, Tensor]] = []
        self.bytes = 0
        for shape in SHAPES:
            stage = make()
            x = torch.randn(self.n, *shape, device=device(), dtype=dtype).to(
                memory_format=torch.channels_last
            )
            x.requires_grad_()
            self.work.append((stage, x, torch.randn_like(stage(x))))
            if compiled:
                compile_network(stage)
        self.bytes = (compiled_bytes if compiled else eager_bytes)(self.once)

    def __call__(self) -> int:
        for _ in range(self.count):
            self.once()
        finish()
        return self.n * self.count

    def once(self) -> None:
        for stage, x, grad in self.work:
            torch.autograd.grad(stage(x), x, grad)

    def cost(self) -> tuple[float, float]:
        return 0.0, self.bytes / self.n
