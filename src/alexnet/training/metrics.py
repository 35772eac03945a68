"""Exact top-k errors: integer counts, one topk for every k, each image once."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class Errors(Metric):
    """Top-k errors and the mean loss of weighted images; counts are summed over ranks.

    `update(scores, labels, weights, loss)` takes (n, classes) logits or probabilities, (n,) labels, (n,) weights of 0
    or 1 and (n,) losses. `compute()` gives {"top1_error": …, "top5_error": …, "loss": …} and raises FloatingPointError
    if a score was not finite, ValueError if nothing was counted. Ties go to the lower class number, as
    `torch.topk` has them.
    """

    full_state_update = False
    misses: Tensor
    images: Tensor
    total_loss: Tensor
    broken: Tensor

    def __init__(self, classes: int, ks: Sequence[int] = (1, 5)):
        super().__init__()
        self.ks = [min(k, classes) for k in ks]
        self.names = [f"top{k}_error" for k in ks]
        self.add_state("misses", torch.zeros(len(ks), dtype=torch.int64), "sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), "sum")
        self.add_state("total_loss", torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("broken", torch.zeros((), dtype=torch.int64), "sum")

    @torch.no_grad()
    def update(self, scores: Tensor, labels: Tensor, weights: Tensor, loss: Tensor) -> None:
        counted = weights > 0
        hits = scores.topk(max(self.ks), 1).indices == labels[:, None]
        for i, k in enumerate(self.ks):
            self.misses[i] += (~hits[:, :k].any(1) & counted).sum()
        self.images += counted.sum()
        # A module in bfloat16 makes its metrics' states so, where 256 + 1 is 256.
        self.total_loss = self.total_loss.double() + (loss * weights).sum()
        self.broken += (~torch.isfinite(scores).all(1) & counted).sum()

    def compute(self) -> dict[str, Tensor]:
        if self.broken > 0:
            raise FloatingPointError(
                f"the net's output is not finite for {int(self.broken)} of {int(self.images)} images: "
                "training has diverged; lower optimizer.lr"
            )
        if self.images == 0:
            raise ValueError("no image was counted")
        errors = {name: self.misses[i] / self.images for i, name in enumerate(self.names)}
        return errors | {"loss": self.total_loss / self.images}

    def counts(self) -> dict[str, int]:
        """The integers behind the errors; call it within `sync_context()` for those of all ranks."""
        named = {
            name.replace("error", "misses"): int(self.misses[i])
            for i, name in enumerate(self.names)
        }
        return named | {"images": int(self.images)}
