"""The training images nearest to validation images, by the network's features (§6.1, Fig. 4 right).

An image's feature is the output of a layer, in the paper the last hidden one, for its center crop.
Distances are Euclidean and exact: the training images pass through the network once, in batches,
and for each query the nearest ones so far are kept.
"""

import json
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor, nn

from alexnet.data.loader import BatchSampler, Loader
from alexnet.data.store import Split
from alexnet.errors import UserError, check_choice
from alexnet.results.finished import FinishedRun
from alexnet.training.figures import Sample, sample_images


class Neighbors(NamedTuple):
    """(queries, nearest) numbers of training images and their distances, the nearest first."""

    rows: np.ndarray
    distances: np.ndarray


def write_neighbors(
    run: FinishedRun, config: DictConfig, device: torch.device
) -> list[dict[str, object]]:
    """Writes neighbors.json and neighbors.png beside the checkpoint.

    Raises UserError if the network has no such layer, or if the sets have too few images.
    """
    splits = run.data.store.splits
    _check_count("queries", config.queries, splits["val"])
    _check_count("nearest", config.nearest, splits["train"])
    sample = sample_images(splits["val"], config.queries)
    neighbors = find_neighbors(run, sample.images, config.layer, config.nearest, device)
    queries = _describe_neighbors(run, sample, neighbors)
    folder = run.checkpoint.parent
    result = {"layer": config.layer, "queries": queries}
    (folder / "neighbors.json").write_text(json.dumps(result, indent=2) + "\n")
    figure = draw_neighbors(sample.images, neighbors.rows, splits["train"])
    figure.savefig(folder / "neighbors.png", dpi=100)
    return queries


def _check_count(option: str, count: int, split: Split) -> None:
    if not 1 <= count <= len(split):
        raise UserError(f"{option}={count} must be from 1 to {len(split)}, the number of images")


@torch.inference_mode()
def find_neighbors(
    run: FinishedRun, queries: Tensor, layer: str, count: int, device: torch.device
) -> Neighbors:
    """The `count` training images nearest to each of the queries, (n, size, size, 3) uint8."""
    net = run.net.to(device)
    data = run.data
    train = data.store.splits["train"]
    query_crops = data.augment.crop_center(queries.to(device))
    nearest = NearestPoints(compute_features(net, layer, query_crops), count)
    sampler = BatchSampler(images=len(train), batch_size=data.batch_size, seed=0, train=False)
    loader = Loader(train, sampler, data.threads, device)
    for batch in track(loader, "comparing", transient=True):
        crops = data.augment.crop_center(batch.images.to(device))
        features = compute_features(net, layer, crops)
        is_real = (batch.weights > 0).to(device)  # the last batch is padded
        nearest.add(features[is_real], batch.ids.to(device)[is_real])
    return Neighbors(nearest.ids.cpu().numpy(), nearest.squares.sqrt().cpu().numpy())


def compute_features(net: nn.Module, layer: str, images: Tensor) -> Tensor:
    """(n, values) float64: the outputs of a layer at test time."""
    layers = dict(net.named_children())
    check_choice("layer", layer, layers)
    x = images
    for name, module in layers.items():
        x = module(x)
        if name == layer:
            break
    return x.flatten(1).double()


class NearestPoints:
    """For each of (queries, values), the `count` nearest of all points added so far."""

    def __init__(self, queries: Tensor, count: int):
        self.queries = queries
        self.count = count
        self.squares = queries.new_empty(len(queries), 0)  # of the distances
        self.ids = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)

    def add(self, points: Tensor, ids: Tensor) -> None:
        """(n, values) points with (n,) ids."""
        # |q - p|² = |q|² - 2 q·p + |p|² needs a single matrix product.
        query_norms = (self.queries**2).sum(1)[:, None]
        point_norms = (points**2).sum(1)
        squares = query_norms - 2 * self.queries @ points.T + point_norms
        all_squares = torch.cat([self.squares, squares.clamp_min(0)], 1)
        all_ids = torch.cat([self.ids, ids.expand(len(squares), -1)], 1)
        count = min(self.count, all_squares.shape[1])
        self.squares, places = all_squares.topk(count, 1, largest=False)
        self.ids = all_ids.gather(1, places)


def _describe_neighbors(
    run: FinishedRun, sample: Sample, neighbors: Neighbors
) -> list[dict[str, object]]:
    """The queries of neighbors.json."""
    classes = run.data.classes
    train_labels = run.data.store.splits["train"].labels
    queries: list[dict[str, object]] = []
    for i, row in enumerate(sample.rows.tolist()):
        nearest = []
        for near_row, distance in zip(neighbors.rows[i], neighbors.distances[i], strict=True):
            near_class = classes[train_labels[near_row]]
            nearest.append(
                {"image": int(near_row), "class": near_class, "distance": float(distance)}
            )
        queries.append({"image": row, "class": classes[sample.labels[i]], "nearest": nearest})
    return queries


def draw_neighbors(queries: Tensor, rows: np.ndarray, train: Split) -> Figure:
    """A row for each query: itself, a gap, then its nearest training images."""
    count, columns = rows.shape
    figure = Figure(figsize=(1.1 * (columns + 1.25), 1.1 * count))
    widths = [1, 0.12] + [1] * columns  # the second column is the gap
    axes = figure.subplots(count, columns + 2, squeeze=False, width_ratios=widths)
    figure.subplots_adjust(left=0, bottom=0, right=1, top=1, wspace=0.04, hspace=0.04)
    for axis in axes.flat:
        axis.axis("off")
    for i in range(count):
        axes[i, 0].imshow(queries[i].numpy())
        for axis, image in zip(axes[i, 2:], train.images(rows[i]), strict=True):
            axis.imshow(image)
    return figure
