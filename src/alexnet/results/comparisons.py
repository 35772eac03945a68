"""Runs compared with each other, as a claim demands.

A `Comparison` names the options in which runs may differ, and tells from them which side a run is
on: "dropout" or "no dropout". Runs that are equal in everything else form a group. In each group
every other side is compared with the reference side: errors by their difference in points, numbers
of epochs by their ratio, whose logarithm is what is averaged and tested.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, isfinite, sqrt
from typing import Any

import numpy as np
from scipy import stats

from alexnet.results.findings import Evidence, Finding, Interval, judge
from alexnet.results.runs import Options, Run, group_comparable
from alexnet.results.scoring import Z

GOAL = 0.25  # training error that Fig. 1 counts epochs to
CONVERGED = 0.01  # above the least validation error
Measure = Callable[[Run], float | None]


def read_val_error(run: Run) -> float | None:
    return run.read_metric("val/top1_error")


def read_train_error(run: Run) -> float | None:
    return run.read_metric("train/top1_error")


def count_epochs_to_goal(run: Run) -> float | None:
    """Epochs to a training error of `GOAL`, interpolated within the last; None if not reached."""
    before = 1.0  # of the untrained network
    for epochs, error in enumerate(run.curves.get("train/top1_error", [])):
        if error <= GOAL:
            return epochs + (before - GOAL) / (before - error)
        before = error
    return None


def count_epochs_to_converge(run: Run) -> float | None:
    """Epochs until the validation error comes within a point of its least."""
    curve = run.curves.get("val/top1_error", [])
    for epochs, error in enumerate(curve, 1):
        if error <= min(curve) + CONVERGED:
            return float(epochs)
    return None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Called with the evidence, it gives one finding for each group of runs and each other side.

    Arguments:
        find_side: the name of the side a run is on; None if the claim is not about it.
        reference: the side with which all others are compared.
        options: in which runs of one group may differ.
        tuned: further such options; a side's best value of these counts.
        measure: what is compared.
        ratio: whether as a ratio.
        better: 1 where the paper has a greater measure on the other side, else -1.
    """

    find_side: Callable[[Options], str | None]
    reference: str
    options: tuple[str, ...]
    tuned: tuple[str, ...] = ()
    measure: Measure = read_val_error
    ratio: bool = False
    better: int = 1

    def __call__(self, evidence: Evidence) -> list[Finding]:
        found = []
        for sides in self._group_by_side(evidence.runs):
            if self.reference not in sides:  # only one side was run
                continue
            reference = self._select_tuned(sides.pop(self.reference))
            for side, runs in sides.items():
                found.append(self._compare(reference, self._select_tuned(runs), side))
        return sorted(found, key=lambda finding: finding.what)

    def find_best_runs(self, runs: Sequence[Run]) -> list[Run]:
        """The runs of the largest group, each side with its best tuned options."""
        groups = self._group_by_side(runs)
        largest = max(groups, key=_count_runs, default={})
        best = []
        for side in sorted(largest):
            best += self._select_tuned(largest[side])
        return best

    def _group_by_side(self, runs: Sequence[Run]) -> list[dict[str, list[Run]]]:
        """The runs that have a side and were measured, by side, for each group."""
        measured = [run for run in runs if self._applies_to(run)]
        groups = []
        for group in group_comparable(measured, self.options + self.tuned):
            sides: dict[str, list[Run]] = defaultdict(list)
            for run in group:
                side = self.find_side(run.options)
                assert side is not None
                sides[side].append(run)
            groups.append(dict(sides))
        return groups

    def _applies_to(self, run: Run) -> bool:
        return self.find_side(run.options) is not None and self.measure(run) is not None

    def _select_tuned(self, runs: list[Run]) -> list[Run]:
        """Those of a side's runs whose tuned options have the least mean measure."""
        if not self.tuned:
            return runs
        by_value: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
        for run in runs:
            by_value[tuple(run.options[name] for name in self.tuned)].append(run)
        return min(by_value.values(), key=lambda same: float(np.mean(self._measure_all(same))))

    def _measure_all(self, runs: Sequence[Run]) -> np.ndarray:
        return np.array([self.measure(run) for run in runs], np.float64)

    def _compare(self, reference: list[Run], other: list[Run], side: str) -> Finding:
        first = self._measure_all(reference)
        second = self._measure_all(other)
        if self.ratio:
            value, interval = _compare_ratio(first, second)
        else:
            value, interval = _compare_points(first, second)
            # Without other seeds the images at least tell how large chance differences are.
            if self.measure is read_val_error and len(first) == len(second) == 1:
                interval = _find_interval_over_images(reference[0], other[0])
        return Finding(
            what=f"{side} against {self.reference}",
            where=reference[0].describe(),
            value=value,
            interval=interval,
            n=f"{len(first)} + {len(second)}",
            verdict=judge(interval, no_effect=1.0 if self.ratio else 0.0, better=self.better),
            ratio=self.ratio,
            numbers=f"{self.reference} {self._format_mean(first)}, "
            f"{side} {self._format_mean(second)}",
        )

    def _format_mean(self, values: np.ndarray) -> str:
        mean = np.mean(values)
        return f"{mean:.1f} epochs" if self.ratio else f"{100 * mean:.2f} %"


def _count_runs(sides: dict[str, list[Run]]) -> int:
    return sum(len(runs) for runs in sides.values())


def _compare_ratio(first: np.ndarray, second: np.ndarray) -> tuple[float, Interval | None]:
    """The ratio of the geometric means, with its interval."""
    value = exp(np.mean(np.log(second)) - np.mean(np.log(first)))
    interval = _find_interval_over_seeds(np.log(first), np.log(second))
    if interval is not None:
        interval = (exp(interval[0]), exp(interval[1]))
    return value, interval


def _compare_points(first: np.ndarray, second: np.ndarray) -> tuple[float, Interval | None]:
    """The difference of the mean errors in points, with its interval."""
    value = 100 * float(np.mean(second) - np.mean(first))
    return value, _find_interval_over_seeds(100 * first, 100 * second)


def _find_interval_over_seeds(first: np.ndarray, second: np.ndarray) -> Interval | None:
    """Welch's 95 % interval of mean(second) - mean(first).

    None if a side has a single run, or if no side varies.
    """
    if min(len(first), len(second)) < 2 or np.ptp(first) == np.ptp(second) == 0:
        return None
    low, high = stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    if not isfinite(low) or not isfinite(high):
        return None
    return float(low), float(high)


def _find_interval_over_images(first: Run, second: Run) -> Interval | None:
    """For one run a side: the interval of the difference of two error rates, in points."""
    first_error = read_val_error(first) or 0.0
    second_error = read_val_error(second) or 0.0
    first_images = first.result["val_counts"].get("images")
    second_images = second.result["val_counts"].get("images")
    if first_images is None or second_images is None:
        return None
    # Each error is a binomial rate.
    first_variance = first_error * (1 - first_error) / first_images
    second_variance = second_error * (1 - second_error) / second_images
    half = Z * sqrt(first_variance + second_variance)
    difference = second_error - first_error
    return 100 * (difference - half), 100 * (difference + half)
