"""A finished run's errors on its validation set, from the centre crop and from ten views (§4.1)."""

import json

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from alexnet.data.augment import TEN_VIEWS, Augment
from alexnet.data.datamodule import StoreData
from alexnet.entry import checkpoint_file, clear_errors, read_run
from alexnet.training.checkpoints import read_checkpoint, weights_for
from alexnet.training.metrics import Errors


def evaluate(cfg: DictConfig) -> dict[str, dict[str, float]]:
    """Prints the table and writes result.json beside the checkpoint. Gives {view: {error: value}}."""
    with clear_errors():
        stored = read_run(cfg.run)
        file = checkpoint_file(cfg.run, cfg.checkpoint)
        if cfg.batch_size:
            stored.data.batch_size = cfg.batch_size
        data: StoreData = instantiate(stored.data)
        net: nn.Module = instantiate(stored.model)
        net.load_state_dict(weights_for(net, read_checkpoint(file)))
        device = torch.device(cfg.device if cfg.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    results = measure(net.to(device).eval(), data, device)
    table = Table(
        "view", "top-1 error", "top-5 error", "loss", title=f"{file}, {len(data.store.splits['val'])} pictures"
    )
    for view, values in results.items():
        table.add_row(view, f"{values['top1_error']:.2%}", f"{values['top5_error']:.2%}", f"{values['loss']:.4f}")
    Console().print(table)
    (file.parent / "result.json").write_text(json.dumps({"checkpoint": file.name, **results}, indent=2) + "\n")
    return results


@torch.inference_mode()
def measure(net: nn.Module, data: StoreData, device: torch.device) -> dict[str, dict[str, float]]:
    """Errors from the centre crop and from the mean of ten views' probabilities."""
    center, ten = Errors(len(data.classes)).to(device), Errors(len(data.classes)).to(device)
    for batch in track(data.loader("val"), "evaluating", transient=True):
        pictures, labels, weights = (
            t.to(device, non_blocking=True) for t in (batch.pictures, batch.labels, batch.weights)
        )
        logits = net(data.augment.center(pictures))
        center.update(logits, labels, weights, F.cross_entropy(logits, labels, reduction="none"))
        averaged = ten_view_probabilities(net, data.augment, pictures)
        ten.update(averaged, labels, weights, F.nll_loss(averaged.log(), labels, reduction="none"))
    named = {"centre crop": center.compute(), "ten views": ten.compute()}
    return {view: {name: float(value) for name, value in values.items()} for view, values in named.items()}


def ten_view_probabilities(net: nn.Module, augment: Augment, pictures: Tensor) -> Tensor:
    """(n, size, size, 3) uint8 to (n, classes): softmax outputs, not logits, are averaged (§4.1)."""
    return net(augment.ten_views(pictures)).softmax(1).unflatten(0, (-1, TEN_VIEWS)).mean(1)
