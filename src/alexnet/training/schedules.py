"""How the learning rate falls during a run.

Each schedule takes the optimizer and the number of steps of the run and of an epoch, and returns
Lightning's configuration of a scheduler. `plateau` reacts to the validation error, `steps` and
`linear` multiply the optimizer's learning rates, and `recorded` replaces them by those of a net of
2012, for each parameter group its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NotRequired

from annotated_types import Interval
from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import with_config as with_pydantic_config
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, ReduceLROnPlateau
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from alexnet.errors import UserError

MONITORED = "val/top1_error"


class SchedulerConfig(TypedDict):
    """A scheduler, and when Lightning steps it."""

    scheduler: LRScheduler | ReduceLROnPlateau
    interval: Literal["epoch", "step"]
    monitor: NotRequired[str]


def plateau(
    optimizer: Optimizer,
    total_steps: int,
    epoch_steps: int,
    *,
    factor: Annotated[float, Interval(gt=0, lt=1)],
    patience: NonNegativeInt,
    threshold: NonNegativeFloat,
    max_drops: NonNegativeInt,
) -> SchedulerConfig:
    """The paper's rule: the learning rate drops when the validation error stops improving.

    Arguments:
        factor: multiplies the learning rate.
        patience: after more than so many epochs without an improvement.
        threshold: an improvement is a top-1 error that is lower by at least this, as a fraction.
        max_drops: how often at most.
    """
    # Of each group; there the scheduler stops.
    lowest = [group["lr"] * factor**max_drops for group in optimizer.param_groups]
    scheduler = ReduceLROnPlateau(
        optimizer,
        mode="min",
        factor=factor,
        patience=patience,
        threshold=threshold,
        threshold_mode="abs",  # not relative to the error
        min_lr=lowest,
        eps=0,  # any change of the learning rate counts, however small
    )
    return {"scheduler": scheduler, "interval": "epoch", "monitor": MONITORED}


def steps(
    optimizer: Optimizer,
    total_steps: int,
    epoch_steps: int,
    *,
    epochs: Sequence[PositiveInt],
    factor: PositiveFloat,
) -> SchedulerConfig:
    """Multiplies the learning rate by `factor` at the end of each of `epochs`."""
    return {"scheduler": MultiStepLR(optimizer, list(epochs), factor), "interval": "epoch"}


def linear(
    optimizer: Optimizer,
    total_steps: int,
    epoch_steps: int,
    *,
    warmup: Annotated[float, Interval(ge=0, lt=1)],
) -> SchedulerConfig:
    """Rises from 0 during `warmup`, a fraction of the run, then falls to 0 at its end."""
    if not 0 <= warmup < 1:
        raise UserError(f"schedule.warmup={warmup} is a fraction of the run: at least 0, below 1")
    warmup_steps = warmup * total_steps

    def scale(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps  # the first step is not wasted on 0
        return (total_steps - step) / max(total_steps - warmup_steps, 1)

    return {"scheduler": LambdaLR(optimizer, scale), "interval": "step"}


@with_pydantic_config(ConfigDict(extra="forbid"))
class Curve(TypedDict):
    """A learning rate that goes from `first` to `last` over the whole run.

    `dexp` takes `steps` equal steps, at least 2. From epoch `stop` on the learning rate is 0.
    """

    shape: Literal["linear", "exp", "dexp"]
    first: PositiveFloat
    last: PositiveFloat
    steps: NotRequired[PositiveInt]
    stop: NotRequired[NonNegativeFloat]


Steps = Sequence[tuple[NonNegativeFloat, NonNegativeFloat]]


def recorded(
    optimizer: Optimizer,
    total_steps: int,
    epoch_steps: int,
    *,
    learning_rates: Mapping[str, Steps | Curve],
) -> SchedulerConfig:
    """The learning rates of a net of 2012; they replace `optimizer.lr`.

    Arguments:
        learning_rates: for each parameter group of the optimizer, a list of [epoch, learning rate],
            each from that epoch on (2.16 is 16 % into the third epoch), or a `Curve`. A layer's
            group without an entry follows `weights` or `biases`.
    """
    groups: list[str] = [group["name"] for group in optimizer.param_groups]
    _check_groups(groups, learning_rates)
    functions = []  # of the step, one for each group
    for name in groups:
        key = name if name in learning_rates else _get_kind(name)
        functions.append(_build_function(key, learning_rates[key], total_steps, epoch_steps))
    for group in optimizer.param_groups:
        group["lr"] = 1.0  # which the scheduler multiplies
    return {"scheduler": LambdaLR(optimizer, functions), "interval": "step"}


def _get_kind(group: str) -> str:
    """`weights` of `conv1.weights`."""
    return group.split(".")[-1]


def _check_groups(groups: Sequence[str], learning_rates: Mapping[str, object]) -> None:
    """Raises UserError unless each entry has its parameter group, and each group an entry."""
    missing_layers: list[str] = []
    for name in learning_rates:
        if _get_kind(name) not in ("weights", "biases"):
            raise UserError(
                f"schedule.learning_rates.{name}: choose weights, biases, or those of a layer, "
                "such as conv1.weights"
            )
        if name not in groups:
            missing_layers.append(name.split(".")[0])
    if missing_layers:
        separate_layers = [name.split(".")[0] for name in groups if "." in name]
        needed = dict.fromkeys(missing_layers)  # each once
        raise UserError(
            f"schedule.learning_rates needs parameter groups for {', '.join(needed)}: add "
            f"optimizer.separate_layers=[{','.join({**dict.fromkeys(separate_layers), **needed})}]"
        )
    for name in groups:
        if name not in learning_rates and _get_kind(name) not in learning_rates:
            raise UserError(
                f"schedule.learning_rates has no entry for {name}: add {_get_kind(name)}"
            )


def _build_function(
    name: str, entry: Steps | Curve, total_steps: int, epoch_steps: int
) -> Callable[[int], float]:
    """The learning rate as a function of the step."""
    if isinstance(entry, Mapping):
        return _build_curve(name, entry, total_steps, epoch_steps)
    epochs = [epoch for epoch, _ in entry]
    if not epochs or epochs[0] != 0 or epochs != sorted(epochs):
        raise UserError(f"schedule.learning_rates.{name}: epochs must start at 0 and ascend")

    def read_list(step: int) -> float:
        current = 0.0
        # Epochs are rounded to whole steps, as 2.16 epochs need not be.
        for epoch, learning_rate in entry:
            if step >= round(epoch * epoch_steps):
                current = learning_rate
        return current

    return read_list


def _build_curve(
    name: str, curve: Curve, total_steps: int, epoch_steps: int
) -> Callable[[int], float]:
    shape = SHAPES[curve["shape"]]
    first = curve["first"]
    last = curve["last"]
    count = curve.get("steps", 1)
    stop = curve.get("stop")
    if curve["shape"] == "dexp" and count < 2:
        raise UserError(f"schedule.learning_rates.{name}.steps={count}: dexp needs at least 2")

    def read_curve(step: int) -> float:
        if stop is not None and step >= stop * epoch_steps:
            return 0.0  # frozen
        progress = min(step / total_steps, 1.0)
        return shape(progress, first, last, count)

    return read_curve


# The shapes of src/lr.cu, from `first` at progress 0 to `last` at progress 1.
def _interpolate_linearly(progress: float, first: float, last: float, steps: int) -> float:
    return first * (1 - progress) + last * progress


def _interpolate_exponentially(progress: float, first: float, last: float, steps: int) -> float:
    ratio: float = (last / first) ** progress
    return first * ratio


def _interpolate_in_steps(progress: float, first: float, last: float, steps: int) -> float:
    """`exp` in as many equal steps."""
    step = min(int(progress * steps), steps - 1)
    return _interpolate_exponentially(step / (steps - 1), first, last, steps)


SHAPES = {
    "linear": _interpolate_linearly,
    "exp": _interpolate_exponentially,
    "dexp": _interpolate_in_steps,
}
