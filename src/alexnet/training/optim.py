"""The paper's update rule and the parameter groups it is applied to."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, overload

import torch
from annotated_types import Interval
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.sgd import sgd

from alexnet.errors import UserError, join_problems

Group = dict[str, Any]  # of an optimizer: its parameters, their options and its name


class SGD(torch.optim.Optimizer):
    """Momentum and weight decay as in §5 of the paper: the learning rate ε is in the velocity.

        v ← momentum · v - decay · ε · w - ε · ∂L/∂w,    w ← w + v

    torch's SGD keeps ε outside. The two agree while ε is constant; after ε falls, the old velocity
    lasts for some ten more steps here. A group with ε = 0 is frozen: it neither decays nor keeps
    moving by its velocity (as in `weights.cu` of 2012).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float,
        momentum: float,
        weight_decay: float,
    ):
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        for name, value in options.items():
            if value < 0:
                raise UserError(f"optimizer.{name}={value} must not be negative")
        super().__init__(params, options)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update_group(group)
        return loss

    def _update_group(self, group: Group) -> None:
        lr: float = group["lr"]
        momentum: float = group["momentum"]
        weights: list[Tensor] = []
        gradients: list[Tensor] = []
        velocities: list[Tensor | None] = []  # as torch's signature has it
        for p in group["params"]:
            if p.grad is None:
                continue
            # Also where ε = 0: to create the state, torch's loading of sharded checkpoints takes a
            # step with such a learning rate.
            self._prepare_velocity(p)
            weights.append(_get_shard(p))
            gradients.append(_get_shard(_match_layout(p.grad, p)))
            velocities.append(_get_shard(self.state[p]["velocity"]))
        if not weights or lr == 0:
            return
        # One pass over memory by torch's fused kernel, which with maximize=True computes
        #   v ← momentum · v + (1 - dampening) · (-weight_decay · w - g),  w ← w - lr · v
        # and without momentum skips v: w ← w - lr · (-weight_decay · w - g).
        sgd(
            weights,
            gradients,
            velocities,
            fused=True,
            foreach=False,
            maximize=True,
            nesterov=False,
            weight_decay=-group["weight_decay"],
            momentum=momentum,
            dampening=1 - lr,
            lr=-1.0 if momentum else -lr,
        )

    def _prepare_velocity(self, parameter: Tensor) -> None:
        """Creates the velocity, or lays a loaded one out as the parameter."""
        state = self.state[parameter]
        if "velocity" in state:
            state["velocity"] = _match_layout(state["velocity"], parameter)
        else:
            state["velocity"] = torch.zeros_like(parameter)


def _match_layout(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the memory layout of `like`, on which the fused kernel relies."""
    if isinstance(like, DTensor):
        assert isinstance(x, DTensor)
        x = x.redistribute(placements=like.placements)
    if x.stride() == like.stride():
        return x
    return torch.empty_like(like).copy_(x)


def _get_shard(x: Tensor) -> Tensor:
    """This device's shard of a tensor; all of one that is not sharded."""
    return x.to_local() if isinstance(x, DTensor) else x


def build_sgd(
    net: nn.Module,
    *,
    lr: NonNegativeFloat,
    momentum: Annotated[float, Interval(ge=0, lt=1)],
    weight_decay: NonNegativeFloat,
    bias_lr_factor: NonNegativeFloat,
    decay_biases: bool,
    separate_layers: Sequence[str] = (),
) -> SGD:
    """`SGD` with the parameter groups `weights` and `biases`.

    Arguments:
        lr: ε of the weights.
        momentum: 0.9 in the paper.
        weight_decay: 0.0005 in the paper.
        bias_lr_factor: ε of the biases, as a multiple of `lr`: 2 in the authors' code, 1 in the
            paper's text.
        decay_biases: False in the authors' code.
        separate_layers: layers with parameter groups of their own, such as `conv1.weights` and
            `conv1.biases`, for schedules that treat these layers differently.
    """
    groups: list[Group] = []
    for name, parameters in _group_parameters(net, separate_layers).items():
        group: Group = {"name": name, "params": parameters}
        if name.endswith("biases"):  # weights have the optimizer's options
            group["lr"] = lr * bias_lr_factor
            group["weight_decay"] = weight_decay * decay_biases
        groups.append(group)
    return SGD(groups, lr, momentum, weight_decay)


def _group_parameters(
    net: nn.Module, separate_layers: Sequence[str]
) -> dict[str, list[nn.Parameter]]:
    """The parameters of each group, by the group's name; `weights` and `biases` come first."""
    layers = dict.fromkeys(name.split(".")[0] for name, _ in net.named_parameters())
    missing = [layer for layer in separate_layers if layer not in layers]
    if missing:
        raise UserError(
            f"optimizer.separate_layers: the network has no weights of {join_problems(missing)}; "
            f"its layers are {', '.join(layers)}"
        )
    # The order of the groups is that of a checkpoint's optimizer state.
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "biases": []}
    for layer in separate_layers:
        groups[f"{layer}.weights"] = []
        groups[f"{layer}.biases"] = []
    for name, parameter in net.named_parameters():
        layer = name.split(".")[0]
        kind = "biases" if name.endswith("bias") else "weights"
        groups[f"{layer}.{kind}" if layer in separate_layers else kind].append(parameter)
    return groups
