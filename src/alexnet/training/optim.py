"""The paper's update rule and what it is applied to."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn


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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            if state["velocity"].stride() != p.stride():  # the foreach kernels are fast on equal strides
                state["velocity"] = torch.empty_like(p).copy_(state["velocity"])

    def _update(self, group: dict[str, Any]) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        for p in weights:  # also with ε = 0: torch's loading of spread checkpoints takes such a step to make the state
            if "velocity" not in self.state[p]:
                self.state[p]["velocity"] = torch.zeros_like(p)
        if not weights or group["lr"] == 0:
            return
        velocities = [self.state[p]["velocity"] for p in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_add_(velocities, weights, alpha=-group["weight_decay"] * group["lr"])
        torch._foreach_add_(velocities, [p.grad for p in weights], alpha=-group["lr"])
        torch._foreach_add_(weights, velocities)


def sgd_2012(
    net: nn.Module,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    bias_lr_factor: float,
    decay_biases: bool,
    apart: Sequence[str] = (),
) -> SGD:
    """`SGD` over two groups of the net's parameters, `weights` and `biases`, and two more for each layer `apart`.

    Arguments:
        lr: ε of the weights; biases have lr · bias_lr_factor (2 in the authors' code, 1 in the paper's text).
        momentum: 0.9 in the paper. weight_decay: 0.0005.
        decay_biases: False as in the authors' code.
        apart: layers with groups of their own, such as `conv1.weights`, whose rates a schedule can tell apart.
    """
    missing = [layer for layer in apart if not hasattr(net, layer)]
    if missing:
        raise ValueError(f"optimizer.apart: the network has no {', '.join(missing)}")
    members: dict[str, list[nn.Parameter]] = {}
    for prefix in ("", *(f"{layer}." for layer in apart)):
        members |= {f"{prefix}weights": [], f"{prefix}biases": []}
    for name, p in net.named_parameters():
        layer, kind = name.split(".")[0], "biases" if name.endswith("bias") else "weights"
        members[f"{layer}.{kind}" if layer in apart else kind].append(p)
    groups = [
        {"name": name, "params": params}
        if name.endswith("weights")
        else {"name": name, "params": params, "lr": lr * bias_lr_factor, "weight_decay": weight_decay * decay_biases}
        for name, params in members.items()
    ]
    return SGD(groups, lr, momentum, weight_decay)
