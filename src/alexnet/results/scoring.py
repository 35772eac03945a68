"""What is counted of probabilities: top-k errors, intervals, averages of several nets."""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

Z = NormalDist().inv_cdf(0.975)


def misses(scores: Tensor, labels: Tensor, k: int, share_ties: bool = False) -> Tensor:
    """(n, classes) scores and (n,) labels to (n,) float64, 1 where the label is not among the k greatest.

    Ties go to the lower class number; with `share_ties` the label has its share of the places that equals compete for,
    as in the authors' kernels: with b scores greater and e equal to its own, its own counted, min((k - b) / e, 1).
    """
    if share_ties:
        own = scores.gather(1, labels[:, None])
        better, equal = (scores > own).sum(1), (scores == own).sum(1)
        return 1 - ((k - better) / equal).clamp(0, 1).double()
    hits = scores.topk(min(k, scores.shape[1]), 1).indices == labels[:, None]
    return 1 - hits.any(1).double()


def errors(probabilities: Tensor, labels: Tensor, share_ties: bool = False) -> dict[str, Any]:
    """Top-1 and top-5 error with their 95 % intervals, mean -log p(label) and the number of images."""
    if not torch.isfinite(probabilities).all():
        raise FloatingPointError("the net's output is not finite: its training has diverged")
    found: dict[str, Any] = {"images": len(labels)}
    for k in (1, 5):
        missed = float(misses(probabilities, labels, k, share_ties).sum())
        found[f"top{k}_error"], found[f"top{k}_interval"] = (
            missed / len(labels),
            wilson(missed, len(labels)),
        )
    own = probabilities.double().gather(1, labels[:, None])
    found["loss"] = float(-own.clamp_min(torch.finfo(torch.float32).tiny).log().mean())
    return found


def gain(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, Any]:
    """By how much the top-1 error falls from `before` to `after` on the same images, with McNemar's 95 % interval."""
    change = misses(before, labels, 1) - misses(after, labels, 1)
    half = Z * float(change.std(correction=0)) / sqrt(len(labels))
    mean = float(change.mean())
    return {"top1_gain": mean, "top1_gain_interval": [mean - half, mean + half]}


def wilson(count: float, n: int) -> list[float]:
    """Wilson's 95 % interval of a share of `count` in `n`."""
    share = count / n
    middle, half = share + Z**2 / (2 * n), Z * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return [(middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)]


def average(probabilities: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The mean of several nets' (n, classes) probabilities."""
    weights = weights or [1.0] * len(probabilities)
    total = torch.zeros_like(probabilities[0])
    for weight, values in zip(weights, probabilities, strict=True):
        total.add_(values, alpha=weight)
    return total / sum(weights)


def searched_weights(probabilities: Sequence[Tensor], labels: Tensor) -> list[float]:
    """The weights that `avg-valid.py` of 2012 would find: from 0.5 each, one net after the other takes that of 0, 0.05
    … 1 with the least top-5 error; five passes at most. Searched on the images it is measured on, it flatters."""
    weights = [0.5] * len(probabilities)

    def missed(candidate: list[float]) -> float:
        return float(misses(average(probabilities, candidate), labels, 5).sum())

    best = missed(weights)
    for _ in range(5):
        before = best
        for i in range(len(weights)):
            for step in range(21):
                candidate = [*weights[:i], step / 20, *weights[i + 1 :]]
                if sum(candidate) and (now := missed(candidate)) < best:
                    best, weights = now, candidate
        if best == before:
            break
    return weights
