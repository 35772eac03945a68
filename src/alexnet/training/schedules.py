"""How the rate falls. Each takes the optimiser and the run's length, and gives Lightning's scheduler entry."""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, ReduceLROnPlateau

ERROR = "val/top1_error"


def drops(
    optimizer: Optimizer,
    total_steps: int,
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
        optimizer, "min", factor, patience, threshold=threshold, threshold_mode="abs", min_lr=floors, eps=0
    )
    return {"scheduler": rule, "interval": "epoch", "monitor": ERROR}


def linear(optimizer: Optimizer, total_steps: int, *, warmup: float) -> dict[str, Any]:
    """Up from 0 over the first `warmup` (a share of the run), then down to 0 at its end."""
    if not 0 <= warmup < 1:
        raise ValueError(f"schedule.warmup={warmup} is a share of the run and must lie in [0, 1)")
    rising = warmup * total_steps

    def rate(step: int) -> float:
        return (step + 1) / rising if step < rising else (total_steps - step) / max(total_steps - rising, 1)

    return {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}
