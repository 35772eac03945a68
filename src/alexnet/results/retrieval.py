"""Fig. 4 right: the training images whose features lie nearest to a test image's."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor, nn

from alexnet.data.loader import BatchSampler, Loader
from alexnet.data.store.reader import Split
from alexnet.training.figures import sample

if TYPE_CHECKING:
    from alexnet.results.evaluate import Finished


@torch.inference_mode()
def neighbors(run: "Finished", cfg: DictConfig, device: torch.device) -> list[dict[str, Any]]:
    """Writes neighbors.png and neighbors.json beside the checkpoint. Raises ValueError if the layer is unknown, or if
    there are not so many images."""
    net, data, train = run.net.to(device), run.data, run.data.store.splits["train"]
    for name, there in (("queries", len(data.store.splits["val"])), ("nearest", len(train))):
        if not 1 <= cfg[name] <= there:
            raise ValueError(
                f"{name}={cfg[name]} must lie in 1..{there}, the images that there are"
            )
    shown, labels, rows = sample(data.store.splits["val"], cfg.queries)
    wanted = features(net, cfg.layer, data.augment.center(shown.to(device)))
    nearest = Nearest(wanted, cfg.nearest)
    order = BatchSampler(len(train), data.batch_size, 0, 0, 1, train=False)
    for batch in track(Loader(train, order, data.threads, device), "comparing", transient=True):
        real = (batch.weights > 0).to(device)
        found = features(net, cfg.layer, data.augment.center(batch.images.to(device)))
        nearest.add(found[real], batch.ids.to(device)[real])
    ids, distances = nearest.ids.cpu().numpy(), nearest.squares.sqrt().cpu()
    result = [
        {
            "image": int(rows[i]),
            "class": data.classes[labels[i]],
            "nearest": [
                {
                    "image": int(k),
                    "class": data.classes[train.labels[k]],
                    "distance": float(distance),
                }
                for k, distance in zip(ids[i], distances[i], strict=True)
            ],
        }
        for i in range(len(rows))
    ]
    folder = run.checkpoint.parent
    (folder / "neighbors.json").write_text(
        json.dumps({"layer": cfg.layer, "queries": result}, indent=2) + "\n"
    )
    grid(shown, ids, train).savefig(folder / "neighbors.png", dpi=100)
    return result


def features(net: nn.Module, layer: str, images: Tensor) -> Tensor:
    """(n, values) float64 outputs of a layer, as the net gives them at test."""
    names = [name for name, _ in net.named_children()]
    if layer not in names:
        raise ValueError(f"layer={layer} is not in the network; choose one of {', '.join(names)}")
    for name, module in net.named_children():
        images = module(images)
        if name == layer:
            break
    return images.flatten(1).double()


class Nearest:
    """The `count` nearest of all points added so far to each of (queries, values), by exact Euclidean distance."""

    def __init__(self, queries: Tensor, count: int):
        self.queries, self.count = queries, count
        self.squares = queries.new_empty(len(queries), 0)
        self.ids = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)

    def add(self, points: Tensor, ids: Tensor) -> None:
        """(n, values) and (n,): |q - p|² as |q|² - 2 q·p + |p|², one matrix product."""
        squares = (
            (self.queries**2).sum(1)[:, None] - 2 * self.queries @ points.T + (points**2).sum(1)
        )
        squares = torch.cat([self.squares, squares.clamp_min(0)], 1)
        known = torch.cat([self.ids, ids.expand(len(squares), -1)], 1)
        self.squares, places = squares.topk(min(self.count, squares.shape[1]), 1, largest=False)
        self.ids = known.gather(1, places)


def grid(queries: Tensor, ids: np.ndarray, train: Split) -> Figure:
    """A row for each query: itself, a gap, then its neighbors."""
    rows, columns = ids.shape
    figure = Figure(figsize=(1.1 * (columns + 1.25), 1.1 * rows))
    axes = figure.subplots(rows, columns + 2, squeeze=False, width_ratios=[1, 0.12, *[1] * columns])
    figure.subplots_adjust(0, 0, 1, 1, 0.04, 0.04)
    for i in range(rows):
        images = np.empty((columns, train.size, train.size, 3), np.uint8)
        train.read(ids[i], images)
        for axis, image in zip(axes[i], [queries[i].numpy(), None, *images], strict=True):
            axis.axis("off")
            if image is not None:
                axis.imshow(image)
    return figure
