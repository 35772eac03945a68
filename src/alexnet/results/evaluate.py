"""Errors of finished runs on their validation set, from the center crop and from ten views (§4.1), of each alone and of
their averaged probabilities (Table 2)."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from alexnet.data.augment import TEN_VIEWS, Augment
from alexnet.data.datamodule import StoreData
from alexnet.results import scoring
from alexnet.results.retrieval import neighbors
from alexnet.results.runs import find_run_folders
from alexnet.run_folder import find_checkpoint, read_config
from alexnet.training.checkpoints import read_checkpoint, select_weights

log = logging.getLogger(__name__)
VIEWS = ("center crop", "ten views")


class Finished(NamedTuple):
    """A run as it is evaluated."""

    folder: Path
    checkpoint: Path
    config: DictConfig
    net: nn.Module
    data: StoreData


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Does what `cfg.what` says with the runs `cfg.run`, and gives what it wrote to result.json."""
    folders = find_run_folders(cfg.run)
    runs = [load(folder, cfg.checkpoint, cfg.batch_size) for folder in folders]
    check_same_data(runs)
    check_weights(cfg.weights, len(runs))
    device = chosen_device(cfg.device)
    if cfg.what == "neighbors":
        return {str(run.folder): neighbors(run, cfg, device) for run in runs}
    return _errors(cfg, runs, device)


def load(folder: Path, checkpoint: str, batch_size: int | None = None) -> Finished:
    """A run's network with its weights, and its data. Raises ValueError or FileNotFoundError."""
    stored = read_config(folder)
    file = find_checkpoint(folder, checkpoint)
    if batch_size is not None:
        stored.data.batch_size = batch_size
    net: nn.Module = instantiate(stored.model)
    net.load_state_dict(select_weights(net, read_checkpoint(file)))
    return Finished(folder, file, stored, net.eval(), instantiate(stored.data))


def check_weights(weights: Any, nets: int) -> None:
    """Raises ValueError if they are no weights of an average."""
    given = list(weights) if OmegaConf.is_list(weights) else []
    fit = (
        len(given) == nets
        and all(isinstance(w, int | float) and w >= 0 for w in given)
        and sum(given) > 0
    )
    if weights not in (None, "search") and not fit:
        raise ValueError(
            f"weights={weights} must be null, search or a number from 0 on for each of {nets} runs, not all of them 0"
        )


def chosen_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises ValueError if torch can't use the device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device={name} can't be used, choose auto, cpu or cuda: {why}") from error


def check_same_data(runs: list[Finished]) -> None:
    """Raises ValueError if the runs were not validated on the same images."""
    first = runs[0]
    for other in runs[1:]:
        alike = [
            (
                run.data.classes,
                run.data.store.splits["val"].labels.tolist(),
                run.data.store.manifest["made_of"],
            )
            for run in (first, other)
        ]
        if alike[0] != alike[1]:
            raise ValueError(
                f"run: {other.folder} was validated on other images than {first.folder}"
            )


def _errors(cfg: DictConfig, runs: list[Finished], device: torch.device) -> dict[str, Any]:
    labels = torch.from_numpy(runs[0].data.store.splits["val"].labels)
    each = [probabilities(run.net.to(device), run.data, device) for run in runs]
    found: dict[str, Any] = {
        "runs": [str(run.folder) for run in runs],
        "checkpoint": cfg.checkpoint,
    }
    rows = []
    for run, views in zip(runs, each, strict=True):
        alone = {
            view: scoring.errors(values, labels, cfg.share_ties) for view, values in views.items()
        }
        alone["ten views"] |= scoring.gain(views["center crop"], views["ten views"], labels)
        rows += [(str(run.folder), view, values) for view, values in alone.items()]
        result = {"checkpoint": run.checkpoint.name, **alone}
        _write(run.checkpoint.parent / "result.json", result)
        _per_class(
            run.checkpoint.parent / "per-class.tsv", views["ten views"], labels, run.data.classes
        )
    found["each"] = [
        {view: values for name, view, values in rows if name == str(run.folder)} for run in runs
    ]
    if len(runs) > 1:
        found |= _ensemble(cfg, each, labels, runs[0].data.classes)
        rows += [
            (f"{len(runs)} nets averaged", view, values)
            for view, values in found["average"].items()
        ]
    _write(_folder() / "result.json", found)
    table = Table(
        "run",
        "view",
        "top-1 error",
        "top-5 error",
        "loss",
        title=f"{len(labels)} images, 95 % intervals",
    )
    for name, view, values in rows:
        table.add_row(name, view, _shown(values, 1), _shown(values, 5), f"{values['loss']:.4f}")
    Console().print(table)
    return found


def _ensemble(
    cfg: DictConfig, each: list[dict[str, Tensor]], labels: Tensor, classes: list[str]
) -> dict[str, Any]:
    weights = None if cfg.weights in (None, "search") else [float(weight) for weight in cfg.weights]
    if cfg.weights == "search":
        weights = scoring.searched_weights([views["ten views"] for views in each], labels)
        log.info("weights found on the validation set's own top-5 error: %s", weights)
    averaged = {view: scoring.average([views[view] for views in each], weights) for view in VIEWS}
    _per_class(_folder() / "per-class.tsv", averaged["ten views"], labels, classes)
    errors = {
        view: scoring.errors(values, labels, cfg.share_ties) for view, values in averaged.items()
    }
    best = min(
        (views["ten views"] for views in each),
        key=lambda values: scoring.misses(values, labels, 1).sum(),
    )
    errors["ten views"] |= scoring.gain(best, averaged["ten views"], labels)
    return {
        "weights": weights or [1.0] * len(each),
        "searched": cfg.weights == "search",
        "average": errors,
    }


@torch.inference_mode()
def probabilities(net: nn.Module, data: StoreData, device: torch.device) -> dict[str, Tensor]:
    """(images, classes) float32 of the validation set in its order, for each view."""
    found: dict[str, list[Tensor]] = {view: [] for view in VIEWS}
    for batch in track(data.loader("val", device), "evaluating", transient=True):
        images = batch.images.to(device)
        found["center crop"].append(net(data.augment.center(images)).softmax(1).cpu())
        found["ten views"].append(ten_view_probabilities(net, data.augment, images).cpu())
    count = len(data.store.splits["val"])  # and then padding
    return {view: torch.cat(values)[:count] for view, values in found.items()}


def ten_view_probabilities(net: nn.Module, augment: Augment, images: Tensor) -> Tensor:
    """(n, size, size, 3) uint8 to (n, classes): softmax outputs, not logits, are averaged (§4.1)."""
    return net(augment.ten_views(images)).softmax(1).unflatten(0, (-1, TEN_VIEWS)).mean(1)


def _per_class(file: Path, values: Tensor, labels: Tensor, classes: list[str]) -> None:
    """The classes by falling top-1 error from ten views, with intervals."""
    missed = {k: scoring.misses(values, labels, k) for k in (1, 5)}
    counts = np.bincount(labels, minlength=len(classes))
    rows = []
    for number, name in enumerate(classes):
        if n := int(counts[number]):
            top1, top5 = (float(missed[k][labels == number].sum()) for k in (1, 5))
            low, high = scoring.wilson(top1, n)
            rows.append(
                (top1 / n, f"{name}\t{n}\t{top1 / n:.4f}\t{low:.4f}\t{high:.4f}\t{top5 / n:.4f}")
            )
    rows.sort(reverse=True)
    file.write_text(
        "\n".join(["class\timages\ttop-1\tlow\thigh\ttop-5", *(row for _, row in rows)]) + "\n"
    )


def _shown(values: dict[str, Any], k: int) -> str:
    low, high = values[f"top{k}_interval"]
    return f"{values[f'top{k}_error']:.2%} ({100 * low:.1f}-{100 * high:.1f})"


def _write(file: Path, found: dict[str, Any]) -> None:
    file.write_text(json.dumps(found, indent=2) + "\n")


def _folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)
