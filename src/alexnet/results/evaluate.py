"""Errors of finished runs on their validation set, alone and averaged (§4.1, Table 2).

A network predicts each image twice: from its center crop, and from ten views (five crops and their
mirror images), whose softmax outputs are averaged. So are those of several runs.

<run>/checkpoints/result.json      errors of this run by view, which report.py reads
<run>/checkpoints/per-class.tsv    errors of each class from ten views
<output folder>/result.json        errors of all runs and of their average
<output folder>/per-class.tsv      errors of each class of the average
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from alexnet.data.augment import Augment
from alexnet.devices import choose_device
from alexnet.errors import UserError
from alexnet.results import scoring
from alexnet.results.finished import FinishedRun, check_same_data, load_run
from alexnet.results.retrieval import write_neighbors
from alexnet.results.runs import find_run_folders
from alexnet.results.scoring import CENTER_CROP, TEN_VIEWS, VIEWS, ErrorRates, Evaluation

log = logging.getLogger(__name__)
Probabilities = dict[str, Tensor]  # (images, classes) float32 by view
Weights = list[float] | Literal["search"]  # of an average


def evaluate(config: DictConfig) -> Mapping[str, object]:
    """Does what `config.what` says with the runs `config.run`, and returns what it wrote."""
    runs = []
    for folder in find_run_folders(config.run):
        runs.append(load_run(folder, config.checkpoint, batch_size=config.batch_size))
    check_same_data(runs)
    weights = read_weights(config.weights, len(runs))
    device = choose_device(config.device)
    if config.what == "neighbors":
        return {str(run.folder): write_neighbors(run, config, device) for run in runs}
    return evaluate_errors(runs, config, weights, device)


def read_weights(option: str | Sequence[float] | None, networks: int) -> Weights:
    if option == "search":
        return "search"
    if option is None:
        return [1.0] * networks
    weights = list(map(float, option))
    are_valid = all(0 <= weight < inf for weight in weights) and sum(weights) > 0
    if len(weights) != networks or not are_valid:
        raise UserError(
            f"weights={option} must be null, search or a number from 0 on for each of "
            f"{networks} runs, not all of them 0"
        )
    return weights


@dataclass(frozen=True)
class Truth:
    """What predictions are measured against."""

    labels: Tensor
    classes: list[str]
    share_ties: bool

    def measure(self, predicted: Probabilities, *, gain_over: Tensor) -> dict[str, ErrorRates]:
        """The errors by view; those of ten views with their gain over other probabilities."""
        rates = {}
        for view, values in predicted.items():
            rates[view] = scoring.measure_errors(values, self.labels, share_ties=self.share_ties)
        scoring.add_gain(rates[TEN_VIEWS], gain_over, predicted[TEN_VIEWS], self.labels)
        return rates

    def select_best(self, candidates: Sequence[Tensor]) -> Tensor:
        """The probabilities with the least top-1 error."""

        def count_misses(probabilities: Tensor) -> float:
            return float(scoring.mark_misses(probabilities, self.labels, 1).sum())

        return min(candidates, key=count_misses)


def evaluate_errors(
    runs: Sequence[FinishedRun], config: DictConfig, weights: Weights, device: torch.device
) -> Evaluation:
    """Prints the errors and writes them to the files that this module's first lines name."""
    data = runs[0].data
    labels = torch.from_numpy(data.store.splits["val"].labels)
    truth = Truth(labels, data.classes, config.share_ties)
    output = Path(HydraConfig.get().runtime.output_dir)
    evaluation: Evaluation = {"runs": [], "checkpoint": config.checkpoint, "each": []}
    predicted: dict[str, list[Tensor]] = {view: [] for view in VIEWS}  # by all networks
    for run in runs:
        probabilities = predict_views(run, device)
        rates = truth.measure(probabilities, gain_over=probabilities[CENTER_CROP])
        folder = run.checkpoint.parent
        _write_json(folder / "result.json", {"checkpoint": run.checkpoint.name, **rates})
        write_class_errors(folder, probabilities[TEN_VIEWS], truth)
        evaluation["runs"].append(str(run.folder))
        evaluation["each"].append(rates)
        for view in VIEWS:
            predicted[view].append(probabilities[view])
    if len(runs) > 1:
        evaluate_average(evaluation, predicted, weights, truth, output)
    _write_json(output / "result.json", evaluation)
    print_errors(evaluation)
    return evaluation


def evaluate_average(
    evaluation: Evaluation,
    predicted: dict[str, list[Tensor]],
    weights: Weights,
    truth: Truth,
    output: Path,
) -> None:
    """Adds the average of all networks to `evaluation`; its gain is over the best of them."""
    searched = weights == "search"
    if weights == "search":
        weights = scoring.search_weights(predicted[TEN_VIEWS], truth.labels)
        log.info("weights with the least top-5 error on this set itself: %s", weights)
    average = {}
    for view, candidates in predicted.items():
        average[view] = scoring.average_networks(candidates, weights)
    best = truth.select_best(predicted[TEN_VIEWS])
    evaluation["weights"] = weights
    evaluation["searched"] = searched
    evaluation["average"] = truth.measure(average, gain_over=best)
    write_class_errors(output, average[TEN_VIEWS], truth)


@torch.inference_mode()
def predict_views(run: FinishedRun, device: torch.device) -> Probabilities:
    """The probabilities of the validation images, in the store's order.

    Raises UserError if one is not finite.
    """
    net = run.net.to(device)
    augment = run.data.augment
    batches: dict[str, list[Tensor]] = {view: [] for view in VIEWS}
    for batch in track(run.data.build_loader("val", device), "evaluating", transient=True):
        images = batch.images.to(device)
        center = net(augment.crop_center(images)).softmax(1)
        batches[CENTER_CROP].append(center.cpu())
        batches[TEN_VIEWS].append(predict_ten_views(net, augment, images).cpu())
    count = len(run.data.store.splits["val"])  # the last batch is padded
    predicted = {view: torch.cat(parts)[:count] for view, parts in batches.items()}
    for probabilities in predicted.values():
        if not torch.isfinite(probabilities).all():
            raise UserError(
                f"{run.checkpoint}: the network's outputs are not finite, its training diverged; "
                "evaluate another checkpoint=…, or train again with a lower optimizer.lr"
            )
    return predicted


def predict_ten_views(net: nn.Module, augment: Augment, images: Tensor) -> Tensor:
    """(n, size, size, 3) uint8 to (n, classes) probabilities.

    Softmax outputs are averaged, not logits (§4.1).
    """
    probabilities: Tensor = net(augment.crop_ten_views(images)).softmax(1)
    return probabilities.view(len(images), -1, probabilities.shape[1]).mean(1)


def write_class_errors(folder: Path, probabilities: Tensor, truth: Truth) -> None:
    """Writes per-class.tsv: the classes by falling top-1 error, with 95 % intervals."""
    classes = truth.classes
    missed = {}
    for k in (1, 5):
        misses = scoring.mark_misses(probabilities, truth.labels, k)
        missed[k] = np.bincount(truth.labels, misses, minlength=len(classes)).tolist()
    counts = np.bincount(truth.labels, minlength=len(classes)).tolist()
    rows = []
    for name, images, top1, top5 in zip(classes, counts, missed[1], missed[5], strict=True):
        if images == 0:
            continue
        low, high = scoring.compute_wilson_interval(top1, images)
        rates = f"{top1 / images:.4f}\t{low:.4f}\t{high:.4f}\t{top5 / images:.4f}"
        rows.append((top1 / images, f"{name}\t{images}\t{rates}"))
    rows.sort(reverse=True)  # classes of equal error by name
    lines = ["class\timages\ttop-1\tlow\thigh\ttop-5", *(line for _, line in rows)]
    (folder / "per-class.tsv").write_text("\n".join(lines) + "\n")


def print_errors(evaluation: Evaluation) -> None:
    """A table of at most 80 columns, in which runs are numbered; their folders are listed below."""
    rows = {str(number): rates for number, rates in enumerate(evaluation["each"], 1)}
    if "average" in evaluation:
        rows["average"] = evaluation["average"]
    images = evaluation["each"][0][CENTER_CROP]["images"]
    table = Table(title=f"{images:,} images, 95 % intervals")
    for heading in ("run", "view", "top-1 error", "top-5 error", "loss"):
        table.add_column(heading)
    for name, views in rows.items():
        for view, rates in views.items():
            top1 = _format_error(rates["top1_error"], rates["top1_interval"])
            top5 = _format_error(rates["top5_error"], rates["top5_interval"])
            table.add_row(name, view, top1, top5, f"{rates['loss']:.4f}")
    console = Console()
    console.print(table)
    for number, folder in enumerate(evaluation["runs"], 1):
        # Unwrapped, so that it can be copied.
        console.print(f"run {number}: {folder}", soft_wrap=True, markup=False, highlight=False)


def _format_error(error: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{error:.2%} ({100 * low:.1f}-{100 * high:.1f})"


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
