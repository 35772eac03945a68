"""A finished run's errors on its validation set, from the centre crop and from ten views (§4.1)."""

import json
import logging
from pathlib import Path
from typing import Any

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
from alexnet.entry import check_types, clear_errors, read_run
from alexnet.training.metrics import Errors

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, dict[str, float]]:
    """Prints the table and writes result.json beside the checkpoint. Gives {view: {error: value}}."""
    with clear_errors():
        check_types(cfg)
        file = checkpoint_file(cfg)
        data, net = load(cfg, file)
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


def checkpoint_file(cfg: DictConfig) -> Path:
    if cfg.checkpoint not in ("best", "last"):
        file = Path(cfg.checkpoint)
    else:
        read_run(cfg.run)
        file = Path(cfg.run) / "checkpoints" / f"{cfg.checkpoint}.ckpt"
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint={cfg.checkpoint}: there is no {file}")
    return file


def load(cfg: DictConfig, file: Path) -> tuple[StoreData, nn.Module]:
    """The run's data and its network with the weights of `file`."""
    stored = read_run(cfg.run)
    if cfg.batch_size:
        stored.data.batch_size = cfg.batch_size
    data: StoreData = instantiate(stored.data)
    net: nn.Module = instantiate(stored.model)
    load_weights(net, file)
    return data, net


def load_weights(net: nn.Module, file: Path) -> None:
    """Raises ValueError if `file` holds another network, naming the first differences."""
    try:
        checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{file} is no whole checkpoint: {error}") from error
    weights = {k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items() if k.startswith("net.")}
    check_weights(net, weights, str(file))
    net.load_state_dict(weights)


def check_weights(net: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    ours = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    different = [
        f"{name} is {theirs.get(name, 'missing')} there and {ours.get(name, 'missing')} here"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]
    if different:
        raise ValueError(f"{source} holds another network: {'; '.join(different[:3])} ({len(different)} differences)")


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
