"""The images that the report shows of one run.

They are the kernels of conv1 by tower (Fig. 3), validation images with their likeliest classes
(Fig. 4 left) and validation images with the training images nearest to them (Fig. 4 right). Without
the run's data there are only kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from alexnet.data.store import Store, open_store
from alexnet.devices import choose_device
from alexnet.errors import UserError
from alexnet.results.finished import load_run
from alexnet.results.kernels import (
    TOWERS,
    measure_color_selectivity,
    read_tower_kernels,
    sort_by_color,
)
from alexnet.results.runs import Run, read_json
from alexnet.training.figures import draw_kernels, find_likeliest, sample_images

GUESSES = 8  # images, as in Fig. 4


class TowerKernels(NamedTuple):
    """One tower's kernels and their mean color selectivity."""

    image: Image.Image
    selectivity: float


class Guess(NamedTuple):
    """An image, its class, and its likeliest classes with their probabilities."""

    image: Image.Image
    label: str
    likeliest: list[tuple[str, float]]


class Neighbors(NamedTuple):
    """A validation image and the training images nearest to it."""

    query: Image.Image
    nearest: list[Image.Image]


@dataclass(frozen=True)
class Gallery:
    """What cannot be shown is empty."""

    run: Run
    kernels: list[TowerKernels]
    guesses: list[Guess]
    neighbors: list[Neighbors]


def build_gallery(runs: Sequence[Run], show_run: str | None, device: str) -> Gallery | None:
    """The images of the run in the folder `show_run`, or else of the best with two towers.

    None if there is no such run. Raises UserError if `show_run` is not one of the runs.
    """
    run = choose_run(runs, show_run)
    if run is None:
        return None
    kernels = collect_kernels(run)
    store = _open_store(run)
    if store is None:
        return Gallery(run, kernels, guesses=[], neighbors=[])
    return Gallery(run, kernels, guess_classes(run, device), collect_neighbors(run, store))


def choose_run(runs: Sequence[Run], show_run: str | None) -> Run | None:
    """By its folder, or the run with two towers and the least error."""
    if show_run is None:
        candidates = [run for run in runs if read_tower_kernels(run)]
        return min(candidates, key=_read_best_error, default=None)
    for run in runs:
        if run.folder == Path(show_run):
            return run
    raise UserError(f"show_run={show_run} is not one of the finished runs that runs=… matches")


def _read_best_error(run: Run) -> float:
    error: float | None = run.result["best_top1_error"]
    return 1.0 if error is None else error  # None without validation


def _open_store(run: Run) -> Store | None:
    """The run's data; None if it is not on this machine, or no longer."""
    options = run.options
    try:
        return open_store(
            options["data.folder"], cache=options["data.cache"], cache_gb=options["data.cache_gb"]
        )
    except (UserError, OSError):
        return None


def collect_kernels(run: Run) -> list[TowerKernels]:
    towers = list(map(sort_by_color, read_tower_kernels(run)))
    if not towers:
        return []
    images = draw_kernels(torch.cat(towers), TOWERS)  # on one scale
    shown = []
    for tower, image in zip(towers, images, strict=True):
        shown.append(TowerKernels(image, float(measure_color_selectivity(tower).mean())))
    return shown


@torch.inference_mode()
def guess_classes(run: Run, device: str) -> list[Guess]:
    """Validation images with the run's five likeliest classes, from the center crop."""
    has_best = run.result["best_top1_error"] is not None
    finished = load_run(run.folder, "best" if has_best else "last")
    on_device = choose_device(device)
    net = finished.net.to(on_device)
    data = finished.data
    classes = data.classes
    sample = sample_images(data.store.splits["val"], GUESSES)
    crops = data.augment.crop_center(sample.images.to(on_device))
    values, likeliest = find_likeliest(net(crops).softmax(1).cpu(), len(classes))
    guesses = []
    for i, label in enumerate(sample.labels.tolist()):
        image = Image.fromarray(sample.images[i].numpy())
        names = [classes[k] for k in likeliest[i].tolist()]
        named_values = zip(names, values[i].tolist(), strict=True)
        guesses.append(Guess(image, classes[label], list(named_values)))
    return guesses


def collect_neighbors(run: Run, store: Store) -> list[Neighbors]:
    """What `evaluate.py what=neighbors` found of the run; nothing before it ran."""
    file = run.folder / "checkpoints" / "neighbors.json"
    if not file.is_file():
        return []
    found = []
    for query in read_json(file)["queries"]:
        rows = [neighbor["image"] for neighbor in query["nearest"]]
        (image,) = _read_images(store, "val", [query["image"]])
        found.append(Neighbors(image, _read_images(store, "train", rows)))
    return found


def _read_images(store: Store, split: str, rows: list[int]) -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in store.splits[split].images(np.array(rows))]
