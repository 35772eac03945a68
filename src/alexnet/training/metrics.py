"""Exact top-k errors: integer counts, in which each image counts once."""

import torch
from torch import Tensor
from torchmetrics import Metric

from alexnet.errors import UserError

KS = (1, 5)


class Errors(Metric):
    """Top-k errors and the mean loss of images, summed over all processes.

    Rows of weight 0 are padding and do not count. Ties go to the lower class number, as
    `torch.topk` has them. With at most k classes, no image is a miss.
    """

    full_state_update = False
    misses: Tensor
    images: Tensor
    total_loss: Tensor
    not_finite: Tensor

    def __init__(self, classes: int):
        super().__init__()
        self.classes = classes
        self.add_state("misses", torch.zeros(len(KS), dtype=torch.int64), "sum")  # one for each k
        self.add_state("images", torch.zeros((), dtype=torch.int64), "sum")
        # Summed in float64, so that the order of summation, and with it the devices, hardly matter.
        self.add_state("total_loss", torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("not_finite", torch.zeros((), dtype=torch.int64), "sum")

    @torch.no_grad()
    def update(self, scores: Tensor, labels: Tensor, weights: Tensor, losses: Tensor) -> None:
        """Counts (n, outputs) logits or probabilities, with (n,) labels, weights and losses."""
        is_counted = weights > 0
        # One topk for every k: columns are the likeliest classes, in order.
        is_hit = scores.topk(min(max(KS), self.classes), 1).indices == labels[:, None]
        for i, k in enumerate(KS):
            self.misses[i] += (~is_hit[:, :k].any(1) & is_counted).sum()
        self.images += is_counted.sum()
        # A module in bfloat16 makes its metrics' states so, where 256 + 1 is 256.
        self.total_loss = self.total_loss.double() + (losses * weights).sum()
        self.not_finite += (~torch.isfinite(scores).all(1) & is_counted).sum()

    def compute(self) -> dict[str, Tensor]:
        """{"top1_error": …, "top5_error": …, "loss": …}; raises UserError if training diverged."""
        if self.not_finite > 0:
            raise UserError(
                f"the network's output is not finite for {int(self.not_finite)} of "
                f"{int(self.images)} images: training has diverged; lower optimizer.lr"
            )
        if self.images == 0:
            raise ValueError("no images were counted")
        values = {f"top{k}_error": self.misses[i] / self.images for i, k in enumerate(KS)}
        values["loss"] = self.total_loss / self.images
        return values

    def read_counts(self) -> dict[str, int]:
        """The integers behind the errors; within `sync_context()`, those of all processes."""
        counts = {f"top{k}_misses": int(self.misses[i]) for i, k in enumerate(KS)}
        counts["images"] = int(self.images)
        return counts
