"""What finished runs say about the paper's claims: findings, each with a number and a verdict.

A verdict rests on the 95 % interval of a difference. If the interval lies entirely on the paper's
side of "no difference", the claim's direction counts as reproduced; entirely on the other side, as
the opposite; otherwise nothing is shown. `comparisons.py` compares runs that differ in an option;
the functions here find what a run shows alone, or repeated with other seeds.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from alexnet.results.gallery import Gallery
from alexnet.results.kernels import TOWERS, measure_color_selectivity, read_tower_kernels
from alexnet.results.runs import Run, group_comparable
from alexnet.results.scoring import CENTER_CROP, TEN_VIEWS, Evaluation

# Verdicts.
REPRODUCED = "direction reproduced"
OPPOSITE = "the opposite"
NOT_SHOWN = "not shown"
NOT_RUN = "not run"
SHOWN = "shown"  # of what is not compared with anything

FALL_2009_CLASSES = 10184  # of ImageNet (§6)
SIGNIFICANCE = 0.05
Interval = tuple[float, float]


@dataclass(frozen=True)
class Evidence:
    """All that is known when claims are judged; no two of `runs` are equal, seed and all."""

    runs: Sequence[Run]
    ensembles: Sequence[Evaluation]
    gallery: Gallery | None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`value` is in points of error, or a ratio, with its 95 % interval."""

    what: str
    where: str
    value: float | None = None
    interval: Interval | None = None
    n: str
    verdict: str
    ratio: bool = False
    numbers: str = ""  # of each side


class StuckLoss(NamedTuple):
    """Images until a run's loss fell below chance level, or all it saw if that never happened."""

    images: float
    learned: bool


def judge(interval: Interval | None, *, no_effect: float = 0.0, better: int = 1) -> str:
    """Whether the interval lies on the paper's side of `no_effect`: above if `better` is 1."""
    if interval is None:
        return NOT_SHOWN
    low, high = interval
    if low <= no_effect <= high:
        return NOT_SHOWN
    is_above = low > no_effect
    paper_is_above = better > 0
    return REPRODUCED if is_above == paper_is_above else OPPOSITE


def compare_views(evidence: Evidence) -> list[Finding]:
    """How much lower the error from ten views is than from the center crop.

    Paired: over the seeds of a run, or over the images of a single one.
    """
    evaluated = [run for run in evidence.runs if "top1_gain" in run.rates.get(TEN_VIEWS, {})]
    return list(map(_compare_views_of, group_comparable(evaluated)))


def _compare_views_of(runs: Sequence[Run]) -> Finding:
    gains = [run.rates[TEN_VIEWS]["top1_gain"] for run in runs]
    center = _average_errors(runs, CENTER_CROP)
    ten = _average_errors(runs, TEN_VIEWS)
    interval = _find_interval_over_runs(gains)
    if len(runs) == 1:  # evaluate.py paired its images
        low, high = runs[0].rates[TEN_VIEWS]["top1_gain_interval"]
        interval = (low, high)
    if interval is not None:
        interval = (100 * interval[0], 100 * interval[1])
    return Finding(
        what="center against ten views",
        where=runs[0].describe(),
        value=100 * float(np.mean(gains)),
        interval=interval,
        n=str(len(runs)),
        verdict=judge(interval),
        numbers=f"center {100 * center:.2f} %, ten views {100 * ten:.2f} %",
    )


def _average_errors(runs: Sequence[Run], view: str) -> float:
    return float(np.mean([run.rates[view]["top1_error"] for run in runs]))


def _find_interval_over_runs(gains: Sequence[float]) -> Interval | None:
    """Student's 95 % interval of a mean; None for a single run, or if all gains are equal."""
    if len(gains) < 2 or np.ptp(gains) == 0:
        return None
    low, high = stats.ttest_1samp(gains, 0).confidence_interval()
    return float(low), float(high)


def compare_averages(evidence: Evidence) -> list[Finding]:
    """How much lower the error of an average is than its best member's, paired over images."""
    return list(map(_compare_average, evidence.ensembles))


def _compare_average(ensemble: Evaluation) -> Finding:
    count = len(ensemble["runs"])
    average = ensemble["average"][TEN_VIEWS]
    errors = [rates[TEN_VIEWS]["top1_error"] for rates in ensemble["each"]]
    low, high = average["top1_gain_interval"]
    interval = (100 * low, 100 * high)
    what = f"best of {count} nets against their average"
    if ensemble["searched"]:
        what += ", weights searched"
    return Finding(
        what=what,
        where=f"{average['images']} images",
        value=100 * average["top1_gain"],
        interval=interval,
        n=str(count),
        verdict=judge(interval),
        numbers=f"best {100 * min(errors):.2f} %, mean {100 * np.mean(errors):.2f} %, "
        f"their average {100 * average['top1_error']:.2f} %",
    )


def report_fall_2009(evidence: Evidence) -> list[Finding]:
    """The errors on ImageNet's Fall 2009 release, for which the paper makes no comparison."""
    found = []
    for run in evidence.runs:
        top1 = run.read_metric("val/top1_error")
        top5 = run.read_metric("val/top5_error")
        if run.options["model.num_classes"] != FALL_2009_CLASSES or top1 is None or top5 is None:
            continue
        found.append(
            Finding(
                what="center crop",
                where=run.describe(),
                n="1",
                verdict=SHOWN,
                numbers=f"{100 * top1:.1f} % / {100 * top5:.1f} %",
            )
        )
    return found


def compare_tower_colors(evidence: Evidence) -> list[Finding]:
    """How colorful the less and the more colorful tower are, and in how many runs they differ."""
    two_towers = [run for run in evidence.runs if run.options.get("model.towers") == TOWERS]
    found = []
    for group in group_comparable(two_towers):
        finding = _compare_tower_colors_of(group)
        if finding is not None:
            found.append(finding)
    return found


def _compare_tower_colors_of(runs: Sequence[Run]) -> Finding | None:
    pairs = []
    differing = 0
    for run in runs:
        towers = read_tower_kernels(run)
        if not towers:
            continue
        # Which tower is the colorful one depends on the initial weights.
        less, more = sorted(map(measure_color_selectivity, towers), key=np.mean)
        pairs.append((float(less.mean()), float(more.mean())))
        p_value = stats.ttest_ind(less, more, equal_var=False).pvalue  # over the kernels
        differing += bool(p_value < SIGNIFICANCE)
    if not pairs:
        return None
    less_mean, more_mean = np.mean(pairs, 0)
    return Finding(
        what="color selectivity of the two towers",
        where=runs[0].describe(),
        n=str(len(pairs)),
        verdict=REPRODUCED if differing == len(pairs) else NOT_SHOWN,
        # 0.67 is two of three color axes, on which noise has two thirds of its energy.
        numbers=f"{less_mean:.2f} and {more_mean:.2f} (noise: 0.67), "
        f"towers differ in {differing} of {len(pairs)} runs",
    )


def report_guesses(evidence: Evidence) -> list[Finding]:
    """Whether the report shows Fig. 4 (left)."""
    gallery = evidence.gallery
    return [_report_images(gallery.run)] if gallery and gallery.guesses else []


def report_neighbors(evidence: Evidence) -> list[Finding]:
    """Whether the report shows Fig. 4 (right)."""
    gallery = evidence.gallery
    return [_report_images(gallery.run)] if gallery and gallery.neighbors else []


def _report_images(run: Run) -> Finding:
    return Finding(what="image", where=run.describe(), n="1", verdict=SHOWN, numbers="below")


def find_stuck_losses(runs: Sequence[Run]) -> dict[str, dict[str, list[StuckLoss]]]:
    """{network and data: {initializer: one for each run}} of the runs that measured it."""
    found: dict[str, dict[str, list[StuckLoss]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if not run.options.get("callbacks.stuck_loss.stop"):
            continue
        images = run.read_metric("train/images_until_learning")
        if images is None:  # the run ended before
            seen = run.result["steps"] * run.options["data.batch_size"]
            loss = StuckLoss(seen, learned=False)
        else:
            loss = StuckLoss(images, learned=True)
        found[run.describe_network()][run.options["model.init"]].append(loss)
    return found
