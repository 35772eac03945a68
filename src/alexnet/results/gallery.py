"""One run's images: its kernels (Fig. 3), its guesses (Fig. 4 left) and nearest training images (Fig. 4 right)."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from alexnet.data.store.reader import Split, Store, open_store
from alexnet.results.evaluate import chosen_device, load
from alexnet.results.kernels import conv1, kernel_images, selectivity
from alexnet.results.runs import Run
from alexnet.training.figures import sample


class Guess(NamedTuple):
    """A image, its class, and its likeliest classes with their probabilities."""

    image: Image.Image
    label: str
    likeliest: list[tuple[str, float]]


def chosen(runs: list[Run], folder: str | None) -> Run | None:
    """The run of that folder, or the two-tower network with the least error. Raises ValueError for another folder."""
    if folder is not None:
        there = [run for run in runs if run.folder == Path(folder)]
        if not there:
            raise ValueError(f"images={folder} is none of the runs")
        return there[0]
    nets = [run for run in runs if conv1(run) is not None]
    return min(nets, key=lambda run: run.result["best_top1_error"] or 1.0, default=None)


def towers(run: Run) -> list[tuple[Image.Image, float]]:
    """Each tower's kernels and their mean color selectivity."""
    weight = conv1(run)
    if weight is None:
        return []
    means = [float(selectivity(tower).mean()) for tower in weight.chunk(2)]
    return list(zip(kernel_images(weight, 2), means, strict=True))


@torch.inference_mode()
def guesses(run: Run, device: str) -> list[Guess]:
    """Eight validation images with the run's five likeliest classes; none if its data is not here."""
    if _store(run) is None:
        return []
    finished = load(run.folder, "best" if run.result["best_top1_error"] is not None else "last")
    on = chosen_device(device)
    shown, labels, _ = sample(finished.data.store.splits["val"], 8)
    probabilities = finished.net.to(on)(finished.data.augment.center(shown.to(on))).softmax(1).cpu()
    classes = finished.data.classes
    top = probabilities[:, : len(classes)].topk(min(5, len(classes)), 1)
    found = []
    for i, label in enumerate(labels):
        likeliest = [(classes[k], float(probabilities[i, k])) for k in top.indices[i].tolist()]
        found.append(Guess(Image.fromarray(shown[i].numpy()), classes[label], likeliest))
    return found


def near(run: Run) -> list[list[Image.Image]]:
    """Rows of a test image and its neighbors, as `evaluate.py what=neighbors` found them; none before it ran."""
    file, store = run.folder / "checkpoints" / "neighbors.json", _store(run)
    if not file.is_file() or store is None:
        return []
    return [
        [_image(store.splits["val"], query["image"])]
        + [_image(store.splits["train"], other["image"]) for other in query["nearest"]]
        for query in json.loads(file.read_text())["queries"]
    ]


def _store(run: Run) -> Store | None:
    try:
        places = (run.options[f"data.{key}"] for key in ("cache", "cache_gb"))
        return open_store(run.options["data.folder"], None, *places)
    except (OSError, KeyError, ValueError):
        return None


def _image(split: Split, row: int) -> Image.Image:
    out = np.empty((1, split.size, split.size, 3), np.uint8)
    split.read(np.array([row]), out)
    return Image.fromarray(out[0])
