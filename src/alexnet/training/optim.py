"""The paper's update rule and what it is applied to."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.sgd import sgd


class SGD(torch.optim.Optimizer):
    """Momentum and decay as in §5 of the paper, with the rate ε inside the velocity:

        v ← momentum · v - decay · ε · w - ε · ∂L/∂w,    w ← w + v

    torch's SGD keeps ε outside. The two agree while ε is constant; after a drop, here the old velocity keeps its
    pace for some ten steps. A group with ε = 0 stands still: no decay, no coasting (`weights.cu` of 2012).
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, weight_decay: float):
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"optimizer.{name}={value} must not be negative")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        for p in weights:  # also with ε = 0: torch's loading of spread checkpoints takes such a step to make the state
            velocity = self.state[p].get("velocity")
            self.state[p]["velocity"] = (
                torch.zeros_like(p) if velocity is None else _laid_out(velocity, p)
            )
        if not weights or group["lr"] == 0:
            return
        rate, momentum = group["lr"], group["momentum"]
        # One pass over memory. torch's kernel has v ← momentum · v + (1 - dampening) · (decay · w - g), w ← w - lr · v,
        # and without momentum no v.
        sgd(
            [_local(p) for p in weights],
            [_local(_laid_out(p.grad, p)) for p in weights],
            [_local(self.state[p]["velocity"]) for p in weights],
            fused=True,
            foreach=False,
            maximize=True,
            nesterov=False,
            weight_decay=-group["weight_decay"],
            momentum=momentum,
            dampening=1 - rate,
            lr=-1.0 if momentum else -rate,
        )


def _laid_out(x: Any, like: Tensor) -> Tensor:
    """`x` in the memory layout of `like`, on which the fused kernel relies."""
    if isinstance(like, DTensor):
        x = x.redistribute(placements=like.placements)
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def _local(x: Tensor) -> Tensor:
    """This device's part of a tensor that is spread over several."""
    return x.to_local() if isinstance(x, DTensor) else x


def build_sgd(
    net: nn.Module,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    bias_lr_factor: float,
    decay_biases: bool,
    separate_layers: Sequence[str] = (),
) -> SGD:
    """`SGD` over two groups of the net's parameters, `weights` and `biases`, and two more for each layer `separate_layers`.

    Arguments:
        lr: ε of the weights; biases have lr · bias_lr_factor (2 in the authors' code, 1 in the paper's text).
        momentum: 0.9 in the paper. weight_decay: 0.0005.
        decay_biases: False as in the authors' code.
        separate_layers: layers with groups of their own, such as `conv1.weights`, whose rates a schedule can tell separate_layers.
    """
    missing = [layer for layer in separate_layers if not hasattr(net, layer)]
    if missing:
        raise ValueError(f"optimizer.separate_layers: the network has no {', '.join(missing)}")
    members: dict[str, list[nn.Parameter]] = {}
    for prefix in ("", *(f"{layer}." for layer in separate_layers)):
        members |= {f"{prefix}weights": [], f"{prefix}biases": []}
    for name, p in net.named_parameters():
        layer, kind = name.split(".")[0], "biases" if name.endswith("bias") else "weights"
        members[f"{layer}.{kind}" if layer in separate_layers else kind].append(p)
    groups = [
        {"name": name, "params": params}
        if name.endswith("weights")
        else {
            "name": name,
            "params": params,
            "lr": lr * bias_lr_factor,
            "weight_decay": weight_decay * decay_biases,
        }
        for name, params in members.items()
    ]
    return SGD(groups, lr, momentum, weight_decay)
