"""Top-k errors, their intervals, and averages of several networks, from predicted probabilities.

Probabilities are an (images, classes) tensor in the order of the (images,) labels. The typed
dictionaries are what evaluate.py writes to result.json and report.py reads.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

CENTER_CROP = "center crop"
TEN_VIEWS = "ten views"
VIEWS = (CENTER_CROP, TEN_VIEWS)
Z = NormalDist().inv_cdf(0.975)  # of a two-sided 95 % interval


class ErrorRates(TypedDict):
    """Of one network, or an average, in one view; errors are from 0 to 1."""

    images: int
    top1_error: float
    top1_interval: list[float]
    top5_error: float
    top5_interval: list[float]
    loss: float  # mean of -log p(label)
    # How far the top-1 error falls from the center crop, or from the best of the networks averaged.
    top1_gain: NotRequired[float]
    top1_gain_interval: NotRequired[list[float]]


class Evaluation(TypedDict):
    """Of evaluate.py; `each` has the errors of every run by view, `average` of their average."""

    runs: list[str]
    checkpoint: str
    each: list[dict[str, ErrorRates]]
    # Only of several runs; the weights may have been searched for on the validation set.
    weights: NotRequired[list[float]]
    searched: NotRequired[bool]
    average: NotRequired[dict[str, ErrorRates]]


def mark_misses(scores: Tensor, labels: Tensor, k: int, *, share_ties: bool = False) -> Tensor:
    """(images,) float64: 1 where the label is not among the k greatest scores, else 0.

    Ties go to the lower class number. With `share_ties` they count as in the authors' kernels: the
    label gets a fraction of a hit, the places left to its equals divided by their number.
    """
    if share_ties:
        own = scores.gather(1, labels[:, None])
        better = (scores > own).sum(1)
        equal = (scores == own).sum(1)  # its own score included
        return 1 - ((k - better) / equal).clamp(0, 1).double()
    top = scores.topk(min(k, scores.shape[1]), 1).indices
    hits = top == labels[:, None]
    return 1 - hits.any(1).double()


def measure_errors(
    probabilities: Tensor, labels: Tensor, *, share_ties: bool = False
) -> ErrorRates:
    images = len(labels)
    top1_missed = float(mark_misses(probabilities, labels, 1, share_ties=share_ties).sum())
    top5_missed = float(mark_misses(probabilities, labels, 5, share_ties=share_ties).sum())
    own = probabilities.double().gather(1, labels[:, None])
    smallest = torch.finfo(torch.float32).tiny  # a probability may be rounded to 0
    return {
        "images": images,
        "top1_error": top1_missed / images,
        "top1_interval": compute_wilson_interval(top1_missed, images),
        "top5_error": top5_missed / images,
        "top5_interval": compute_wilson_interval(top5_missed, images),
        "loss": float(-own.clamp_min(smallest).log().mean()),
    }


def add_gain(rates: ErrorRates, before: Tensor, after: Tensor, labels: Tensor) -> None:
    """Adds to `rates` how far the top-1 error falls from `before` to `after` on the same images.

    The interval is McNemar's: only images on which the two differ widen it.
    """
    change = mark_misses(before, labels, 1) - mark_misses(after, labels, 1)  # -1, 0 or 1
    mean = float(change.mean())
    half = Z * float(change.std(correction=0)) / sqrt(len(labels))
    rates["top1_gain"] = mean
    rates["top1_gain_interval"] = [mean - half, mean + half]


def compute_wilson_interval(count: float, n: int) -> list[float]:
    """Wilson's 95 % interval of the rate `count` / `n`."""
    rate = count / n
    middle = rate + Z**2 / (2 * n)
    half = Z * sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    return [(middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)]


def average_networks(
    probabilities: Sequence[Tensor], weights: Sequence[float] | None = None
) -> Tensor:
    """The weighted mean of several networks' probabilities; equal weights if None."""
    weights = weights or [1.0] * len(probabilities)
    total = torch.zeros_like(probabilities[0])
    for weight, values in zip(weights, probabilities, strict=True):
        total.add_(values, alpha=weight)
    return total / sum(weights)


def search_weights(probabilities: Sequence[Tensor], labels: Tensor) -> list[float]:
    """The weights of an average that `avg-valid.py` of 2012 would find.

    Starting from 0.5 each, one network after the other takes the weight 0, 0.05, … 1 with the least
    top-5 error, in at most five passes. They are tuned on the images they are evaluated on, so the
    result is optimistically biased.
    """
    weights = [0.5] * len(probabilities)
    least = _count_top5_misses(probabilities, weights, labels)
    for _ in range(5):
        before = least
        for i in range(len(weights)):
            for step in range(21):
                candidate = [*weights[:i], step / 20, *weights[i + 1 :]]
                if sum(candidate) == 0:  # no average
                    continue
                missed = _count_top5_misses(probabilities, candidate, labels)
                if missed < least:
                    least = missed
                    weights = candidate
        if least == before:  # the next pass would do the same
            break
    return weights


def _count_top5_misses(
    probabilities: Sequence[Tensor], weights: Sequence[float], labels: Tensor
) -> float:
    return float(mark_misses(average_networks(probabilities, weights), labels, 5).sum())
