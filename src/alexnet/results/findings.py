"""What finished runs say of the claims: runs that are alike in all but a claim's own options are compared."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import exp, isfinite, sqrt
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from alexnet.results.claims import Claim, error
from alexnet.results.kernels import conv1, selectivity
from alexnet.results.runs import Run
from alexnet.results.scoring import Z

REPRODUCED, OPPOSITE, NOT_SHOWN, NOT_RUN, SHOWN = (
    "direction reproduced",
    "the opposite",
    "not shown",
    "not run",
    "shown",
)
# Options in which runs may differ and still be compared.
FREE: tuple[str, ...] = (
    "seed",
    "run_folder",
    "resume",
    "callbacks",
    "logger",
    "parallel",
    "compile",
    "fused",
)
FREE = (
    *FREE,
    *(f"trainer.{name}" for name in ("devices", "accelerator", "num_nodes", "log_every_n_steps")),
)
FREE = (*FREE, "data.threads", "data.cache", "data.cache_gb")


class Finding(NamedTuple):
    """What runs here say of a claim: `value` in points of error or as a ratio, with its 95 % interval."""

    what: str
    where: str
    value: float | None
    interval: tuple[float, float] | None
    n: str
    verdict: str
    ratio: bool = False
    numbers: str = ""  # of each side


def compared(claim: Claim, runs: Sequence[Run]) -> list[Finding]:
    """One for each group of like runs and each other side."""
    found = []
    for sides in _groups(claim, runs):
        for side, others in sides.items():
            if side != claim.reference and claim.reference in sides:
                found.append(
                    _comparison(
                        claim, _tuned(claim, sides[claim.reference]), _tuned(claim, others), side
                    )
                )
    return sorted(found, key=lambda finding: finding.what)


def _groups(claim: Claim, runs: Sequence[Run]) -> list[dict[str, list[Run]]]:
    """Runs by side, for each set of them that is alike but for the claim's options."""
    if claim.side is None or claim.measure is None:
        return []
    groups: dict[Any, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in once(runs):
        side = claim.side(run.options)
        if side is not None and claim.measure(run) is not None:
            groups[alike(run, claim.keys + claim.tuned)][side].append(run)
    return list(groups.values())


def once(runs: Sequence[Run]) -> list[Run]:
    """The last of runs that are the same, seed and all: two sweeps may share a side, which counts once."""
    return list({(alike(run, ()), run.seed): run for run in runs}.values())


def alike(run: Run, keys: Iterable[str]) -> Any:
    free = (*FREE, *keys)
    return tuple(
        (name, value)
        for name, value in sorted(run.options.items())
        if not any(name == key or name.startswith(f"{key}.") for key in free)
    )


def _tuned(claim: Claim, runs: list[Run]) -> list[Run]:
    """Those runs of a side whose tuned options do best: the least measure on average."""
    if not claim.tuned or claim.measure is None:
        return runs
    by_value: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        by_value[tuple(run.options[key] for key in claim.tuned)].append(run)
    measure: Any = claim.measure
    return min(by_value.values(), key=lambda same: float(np.mean([measure(run) for run in same])))


def _comparison(claim: Claim, first: list[Run], second: list[Run], side: str) -> Finding:
    measure: Any = claim.measure
    a, b = [measure(run) for run in first], [measure(run) for run in second]
    n, place = f"{len(a)} + {len(b)}", where(first[0])
    numbers = f"{claim.reference} {_mean(a, claim.ratio)}, {side} {_mean(b, claim.ratio)}"
    what = f"{side} against {claim.reference}"
    if claim.ratio:
        value, interval = (
            exp(np.mean(np.log(b)) - np.mean(np.log(a))),
            _interval(np.log(a), np.log(b)),
        )
        interval = interval and (exp(interval[0]), exp(interval[1]))
    else:
        value, interval = (
            100 * float(np.mean(b) - np.mean(a)),
            _interval(100 * np.array(a), 100 * np.array(b)),
        )
        if measure is error and len(a) == len(b) == 1:
            interval = _over_images(first[0], second[0])
    verdict = judged(interval, 1.0 if claim.ratio else 0.0, claim.better)
    return Finding(what, place, value, interval, n, verdict, claim.ratio, numbers)


def _mean(values: list[float], ratio: bool) -> str:
    return f"{np.mean(values):.1f} epochs" if ratio else f"{100 * np.mean(values):.2f} %"


def judged(interval: tuple[float, float] | None, none: float, better: int = 1) -> str:
    """Whether an interval lies wholly on the paper's side of `none`."""
    if interval is None or interval[0] <= none <= interval[1]:
        return NOT_SHOWN
    return REPRODUCED if (interval[0] > none) == (better > 0) else OPPOSITE


def _interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float] | None:
    """Welch's 95 % interval of mean(b) - mean(a) over seeds; None if a side has a single run."""
    if min(len(a), len(b)) < 2 or np.ptp(a) == np.ptp(b) == 0:
        return None
    low, high = stats.ttest_ind(b, a, equal_var=False).confidence_interval()
    return (float(low), float(high)) if isfinite(low) and isfinite(high) else None


def _over_images(first: Run, second: Run) -> tuple[float, float] | None:
    """For one run a side: of the difference of two shares of the validation images, in points."""
    a, b = error(first) or 0.0, error(second) or 0.0
    counts = [run.result["val_counts"].get("images") for run in (first, second)]
    if None in counts:
        return None
    half = Z * sqrt(a * (1 - a) / counts[0] + b * (1 - b) / counts[1])
    return 100 * (b - a - half), 100 * (b - a + half)


def over_runs(gains: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean over runs; None for a single one."""
    if len(gains) < 2 or np.ptp(gains) == 0:
        return None
    low, high = stats.ttest_1samp(gains, 0).confidence_interval()
    return float(low), float(high)


def where(run: Run) -> str:
    width = run.options.get("model.width", 1.0)
    name = str(run.options["model._target_"]).rsplit(".", 1)[-1]
    return f"{name}{f' × {width:g}' if width != 1 else ''} on {run.data}, {run.result['epochs']} epochs"


def views(runs: list[Run]) -> list[Finding]:
    """Center crop less ten views, paired: over runs that differ in their seed, or over one's images."""
    groups: dict[Any, list[Run]] = {}
    for run in once(runs):
        if "top1_gain" in run.views.get("ten views", {}):
            groups.setdefault(alike(run, ()), []).append(run)
    found = []
    for same in groups.values():
        views = [run.views for run in same]
        gains = [view["ten views"]["top1_gain"] for view in views]
        interval = over_runs(gains)
        if len(same) == 1:
            interval = tuple(views[0]["ten views"]["top1_gain_interval"])
        shares = [
            100 * np.mean([view[name]["top1_error"] for view in views])
            for name in ("center crop", "ten views")
        ]
        numbers = "center {:.2f} %, ten views {:.2f} %".format(*shares)
        points = interval and (100 * interval[0], 100 * interval[1])
        gain, n, verdict = 100 * float(np.mean(gains)), str(len(same)), judged(points, 0.0)
        found.append(
            Finding(
                "center against ten views", where(same[0]), gain, points, n, verdict, False, numbers
            )
        )
    return found


def averages(ensembles: list[dict[str, Any]]) -> list[Finding]:
    """The best member less the average, paired over images."""
    found = []
    for ensemble in ensembles:
        average, count = ensemble["average"]["ten views"], len(ensemble["runs"])
        each = [views["ten views"]["top1_error"] for views in ensemble["each"]]
        low, high = (100 * value for value in average["top1_gain_interval"])
        shares = (min(each), np.mean(each), average["top1_error"])
        numbers = "best {:.2f} %, mean {:.2f} %, their average {:.2f} %".format(
            *(100 * share for share in shares)
        )
        what = f"best of {count} nets against their average" + (
            ", weights searched" if ensemble["searched"] else ""
        )
        place = f"{average['images']} images"
        verdict = judged((low, high), 0.0)
        found.append(
            Finding(
                what,
                place,
                100 * average["top1_gain"],
                (low, high),
                str(count),
                verdict,
                False,
                numbers,
            )
        )
    return found


def fall_2009(runs: list[Run]) -> list[Finding]:
    found = []
    for run in once(runs):
        errors = [run.final(f"val/top{k}_error") for k in (1, 5)]
        if run.options["model.num_classes"] == 10184 and None not in errors:
            numbers = " / ".join(f"{100 * value:.1f} %" for value in errors if value is not None)
            found.append(Finding("center crop", where(run), None, None, "1", SHOWN, False, numbers))
    return found


def towers(runs: list[Run]) -> list[Finding]:
    """The color selectivity of the less and the more colorful tower, and in how many runs they differ."""
    groups: dict[Any, list[Run]] = defaultdict(list)
    for run in once(runs):
        if run.options.get("model.towers") == 2:
            groups[alike(run, ())].append(run)
    found = []
    for same in groups.values():
        pairs, differ = [], 0
        for run in same:
            if (weight := conv1(run)) is None:
                continue
            a, b = sorted((selectivity(tower) for tower in weight.chunk(2)), key=np.mean)
            pairs.append((float(a.mean()), float(b.mean())))
            differ += bool(stats.ttest_ind(a, b, equal_var=False).pvalue < 0.05)
        if pairs:
            low, high = np.mean(pairs, 0)
            verdict = REPRODUCED if differ == len(pairs) else NOT_SHOWN
            numbers = f"{low:.2f} and {high:.2f} (noise: 0.67), towers differ in {differ} of {len(pairs)} runs"
            what = "color selectivity of the two towers"
            found.append(
                Finding(what, where(same[0]), None, None, str(len(pairs)), verdict, False, numbers)
            )
    return found


def plateau(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """{where: {initializer: images until the loss left the plateau}} of runs that measured it; one that did not leave
    has its length, negative."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in once(runs):
        if run.options.get("callbacks.stuck_loss.stop"):
            seen = run.result["steps"] * run.options["data.batch_size"]
            found[where(run).split(",")[0]][run.options["model.init"]].append(
                run.final("train/images_until_learning") or -seen
            )
    return found


def at_best(claim: Claim, runs: Sequence[Run]) -> list[Run]:
    """The runs of the largest group that a claim compares, each side's at their best."""
    groups = _groups(claim, runs)
    if not groups or claim.side is None:
        return []
    sides = max(groups, key=lambda group: sum(len(side) for side in group.values()))
    return [run for name in sorted(sides) for run in _tuned(claim, sides[name])]
