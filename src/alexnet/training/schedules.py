"""How the rate falls. Each takes the optimizer, the run's length and an epoch's in steps, and gives Lightning's
scheduler entry."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, ReduceLROnPlateau

ERROR = "val/top1_error"


def drops(
    optimizer: Optimizer,
    total_steps: int,
    epoch_steps: int,
    *,
    epochs: Sequence[int] | None,
    factor: float,
    patience: int,
    threshold: float,
    drops: int,
) -> dict[str, Any]:
    """Multiplies the rate by `factor` when each of `epochs` is done: a recorded run's drops. Without them, the paper's
    rule: when the validation error has not fallen by `threshold` (of 1) for more than `patience` epochs, `drops` times
    at most."""
    if epochs is not None:
        return {"scheduler": MultiStepLR(optimizer, list(epochs), factor), "interval": "epoch"}
    floors = [group["lr"] * factor**drops for group in optimizer.param_groups]
    rule = ReduceLROnPlateau(
        optimizer,
        "min",
        factor,
        patience,
        threshold=threshold,
        threshold_mode="abs",
        min_lr=floors,
        eps=0,
    )
    return {"scheduler": rule, "interval": "epoch", "monitor": ERROR}


def linear(
    optimizer: Optimizer, total_steps: int, epoch_steps: int, *, warmup: float
) -> dict[str, Any]:
    """Up from 0 over the first `warmup` (a share of the run), then down to 0 at its end."""
    if not 0 <= warmup < 1:
        raise ValueError(f"schedule.warmup={warmup} is a share of the run and must lie in [0, 1)")
    rising = warmup * total_steps

    def rate(step: int) -> float:
        return (
            (step + 1) / rising
            if step < rising
            else (total_steps - step) / max(total_steps - rising, 1)
        )

    return {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}


def recorded(
    optimizer: Optimizer,
    total_steps: int,
    epoch_steps: int,
    *,
    rates: dict[str, Sequence[Sequence[float]] | dict[str, Any]],
) -> dict[str, Any]:
    """The rates of a net of 2012, for each of the optimizer's groups its own; they replace `optimizer.lr`.

    A group's entry is a list of [epoch, rate], each from that epoch on (2.16 is an epoch and 16 % of the next), or
    `{shape, first, last, steps, stop}`: one of `SHAPES` over the run, with rate 0 from epoch `stop` on if it is given.
    A layer's group without an entry follows `weights` or `biases`. Raises ValueError for an entry without a group.
    """
    names = [group["name"] for group in optimizer.param_groups]
    if unknown := set(rates) - set(names):
        raise ValueError(
            f"schedule.rates has {', '.join(sorted(unknown))}: name these layers in optimizer.separate_layers"
        )
    for group in optimizer.param_groups:
        group["lr"] = 1.0  # which the rates multiply
    entries = [rates[name if name in rates else name.split(".")[-1]] for name in names]
    curves = [_curve(entry, total_steps, epoch_steps) for entry in entries]
    return {"scheduler": LambdaLR(optimizer, curves), "interval": "step"}


def _curve(entry: Any, total_steps: int, epoch_steps: int) -> Callable[[int], float]:
    """The rate at a step."""
    if isinstance(entry, dict):
        shape, stop = SHAPES[entry["shape"]], entry.get("stop")
        first, last, steps = entry["first"], entry["last"], entry.get("steps", 1)

        def shaped(step: int) -> float:
            if stop is not None and step >= stop * epoch_steps:
                return 0.0
            return shape(min(step / total_steps, 1.0), first, last, steps)

        return shaped

    def listed(step: int) -> float:
        return [rate for epoch, rate in entry if step >= round(epoch * epoch_steps)][-1]

    return listed


def _dexp(progress: float, first: float, last: float, steps: int) -> float:
    return _exp(min(int(progress * steps), steps - 1) / (steps - 1), first, last, steps)


def _exp(progress: float, first: float, last: float, steps: int) -> float:
    return first * (last / first) ** progress


def _linear(progress: float, first: float, last: float, steps: int) -> float:
    return first * (1 - progress) + last * progress


SHAPES = {
    "linear": _linear,
    "exp": _exp,
    "dexp": _dexp,
}  # of src/lr.cu; dexp is exp in `steps` equal treads
