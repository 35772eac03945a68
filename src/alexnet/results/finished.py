"""A finished run loaded for use: its network with trained weights, and its data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from alexnet.data.datamodule import StoreData
from alexnet.errors import UserError
from alexnet.options import build_object
from alexnet.run_folder import find_checkpoint, read_config
from alexnet.training.checkpointing import read_checkpoint, select_weights


@dataclass(frozen=True)
class FinishedRun:
    """`net` is in evaluation mode and has the weights of `checkpoint`."""

    folder: Path
    checkpoint: Path
    config: DictConfig
    net: nn.Module
    data: StoreData


def load_run(folder: Path, checkpoint: str, *, batch_size: int | None = None) -> FinishedRun:
    """Builds what the run's configuration names; `checkpoint` is `best` or `last`.

    Raises UserError if `folder` is not a run, or its checkpoint or its data are missing or corrupt.
    """
    config = read_config(folder)
    file = find_checkpoint(folder, checkpoint)
    if batch_size is not None:  # changes memory and speed only
        config.data.batch_size = batch_size
    net: nn.Module = build_object(config.model)  # read_config has checked what it may build
    net.load_state_dict(select_weights(net, read_checkpoint(file)))
    return FinishedRun(folder, file, config, net.eval(), build_object(config.data))


def check_same_data(runs: Sequence[FinishedRun]) -> None:
    """Raises UserError unless all runs were validated on the same images."""
    first = runs[0]
    for other in runs[1:]:
        if _describe_data(first) != _describe_data(other):
            raise UserError(
                f"run: {other.folder} was validated on other images than {first.folder}; "
                "evaluate them separately"
            )


def _describe_data(run: FinishedRun) -> tuple[object, ...]:
    store = run.data.store
    labels = store.splits["val"].labels.tolist()
    return run.data.classes, labels, store.manifest["made_of"]  # source, resizing, …
