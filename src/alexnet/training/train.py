"""One run, from its options to result.json."""

import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.distributed import DistError

from alexnet.data.datamodule import StoreData
from alexnet.data.store import Store, open_store
from alexnet.errors import UserError
from alexnet.nets.layers import compile_network
from alexnet.options import build_object
from alexnet.run_folder import find_checkpoint, flatten, write_config
from alexnet.training.checkpointing import (
    AtomicCheckpointIO,
    load_initial_weights,
    read_checkpoint,
)
from alexnet.training.module import Classifier
from alexnet.training.validate import check_batches, check_data, count_training_images

log = logging.getLogger(__name__)
# Gloo's errors have no type of their own, and the second does not even name it.
GLOO_ERRORS = ("gloo", "Application timeout caused pair closure")
LIGHTNING_NOISE = (
    "Tip",
    "GPU available",  # the summary names the device
    "TPU available",
    "Loading `train_dataloader`",
    "distributed_backend=",
)
EXPECTED_WARNINGS = (
    ".*LeafSpec.*",  # Lightning 2.6 with torch 2.15
    ".*sync_dist=True.*",  # torchmetrics has summed these values already
    ".*exists and is not empty.*",  # the folder of a run that is resumed
    ".*could not find the monitored key.*",  # of a run without validation
)


@dataclass
class TrainingRun:
    """All parts of a run."""

    folder: Path
    config: DictConfig
    trainer: L.Trainer
    module: Classifier
    data: StoreData
    checkpoint: Path | None  # from which the run resumes


def train(config: DictConfig) -> float:
    """Trains by options that `validate.check_config` has accepted.

    Returns the best top-1 validation error, which sweeps minimize.
    """
    store = prepare_data(config)
    if config.model.num_classes is None:
        config.model.num_classes = len(store.classes)
    check_data(config, store)
    quiet_lightning()
    run = build_run(config)
    write_run_facts(run)
    log_summary(run)
    with explain_lost_process(run.folder):
        run.trainer.fit(run.module, datamodule=run.data, ckpt_path=run.checkpoint)
    return write_result(run)


def prepare_data(config: DictConfig) -> Store:
    """Opens the store; if it is one that is rendered, checks the batches and renders it first."""
    images = count_training_images(config)
    if images is not None:
        check_batches(config, images)
    data = config.data
    make = build_object(data.make) if data.make else None
    return open_store(data.folder, make, data.cache, data.cache_gb)


def build_run(config: DictConfig) -> TrainingRun:
    """Builds every part of a run whose options have been checked."""
    data: StoreData = build_object(config.data)
    L.seed_everything(config.seed, verbose=False)
    network = build_network(config)
    parallel = build_object(config.parallel)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    module = Classifier(
        net=network,
        classes=data.classes,
        optimizer=build_object(config.optimizer),
        schedule=build_object(config.schedule),
        parallel=parallel,
        seed=config.seed,
        config=plain,
    )
    checkpoint = find_checkpoint(config.resume, "last") if config.resume else None
    world_size = config.trainer.devices * config.trainer.num_nodes
    trainer = build_object(
        config.trainer,
        strategy=parallel.build_lightning_strategy(world_size),
        callbacks=[build_object(callback) for callback in config.callbacks.values()],
        logger=build_logger(config, checkpoint),
        plugins=AtomicCheckpointIO(),
    )
    if config.compile and trainer.strategy.root_device.type == "cuda":
        data.augment.compile()
    folder = Path(HydraConfig.get().runtime.output_dir)
    return TrainingRun(folder, config, trainer, module, data, checkpoint)


def build_network(config: DictConfig) -> nn.Module:
    """The network with its initial weights, in channels-last memory; fused, compiled if asked."""
    network: nn.Module = build_object(config.model)
    if config.start.run and not config.resume:
        checkpoint = find_checkpoint(config.start.run, "last")
        load_initial_weights(network, checkpoint, config.start.layers)
    network = network.to(memory_format=torch.channels_last)
    if config.fused:
        from alexnet.nets.fused import fuse_stages  # needs Triton, which is not everywhere

        fuse_stages(network)
    if config.compile:
        compile_network(network)
    return network


def build_logger(config: DictConfig, checkpoint: Path | None) -> Any:
    """The logger, which drops what an interrupted run logged after its checkpoint."""
    if not config.get("logger"):
        return False  # for Lightning None would be its default
    purge_step = read_checkpoint(checkpoint)["global_step"] if checkpoint else None
    return build_object(config.logger, purge_step=purge_step)


def quiet_lightning() -> None:
    """Lightning's messages go through Hydra's handlers once, without advertisements."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_worth_showing)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(text in message for text in LIGHTNING_NOISE)


@contextmanager
def explain_lost_process(folder: Path) -> Iterator[None]:
    """Raises UserError that names the fix if another process of the run died or is silent."""
    try:
        yield
    except RuntimeError as error:
        is_gloo = any(text in str(error) for text in GLOO_ERRORS)
        if not isinstance(error, DistError) and not is_gloo:
            raise
        raise UserError(
            "another process of this run died, or was silent for parallel.timeout seconds: see its "
            f"output; resume={folder} continues the run ({str(error).splitlines()[0]})"
        ) from error


@rank_zero_only
def write_run_facts(run: TrainingRun) -> None:
    """config.yaml and run.json: what is needed to repeat the run."""
    write_config(run.config, run.folder)
    packages = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "numpy")
    facts = {
        "command": sys.argv,
        "seed": run.config.seed,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": find_git_commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "device": name_device(run.trainer.strategy.root_device),
        "devices": run.trainer.world_size,
        "parameters": count_parameters(run.module.net),
    }
    (run.folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n")


def name_device(device: torch.device) -> str:
    """The GPU's name, or the processor's if the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or "CPU"


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def find_git_commit() -> str | None:
    """The checkout's commit, with "+" if files differ from it; None outside git."""
    folder = Path(__file__).parent
    try:
        commit = _ask_git(folder, "rev-parse", "HEAD")
        changes = _ask_git(folder, "status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changes else commit


def _ask_git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    answer = subprocess.check_output(command, cwd=folder, text=True, stderr=subprocess.DEVNULL)
    return answer.strip()


@rank_zero_only
def log_summary(run: TrainingRun) -> None:
    """The first lines of the log: what the run uses, in one place."""
    config = run.config
    splits = run.data.store.splits
    device = name_device(run.trainer.strategy.root_device)
    epoch_batches = count_epoch_batches(config, len(splits["train"]))
    lines = {
        "network": f"{_describe_network(config)}, {count_parameters(run.module.net):,} parameters, "
        f"dropout {config.model.get('dropout', 0):g}",
        "data": f"{config.data.folder}: {len(splits['train']):,} training and "
        f"{len(splits['val']):,} validation images, {len(run.data.classes)} classes, "
        f"crops of {config.augment.crop}",
        "training": f"epochs: {config.trainer.max_epochs}, each of {epoch_batches:,} batches; "
        f"batch size {config.data.batch_size}, {_describe_schedule(config)}, seed {config.seed}",
        "device": f"{run.trainer.world_size} × {device}, {torch.get_num_threads()} threads each, "
        f"{config.trainer.precision}, strategy {_name_target(config.parallel)}",
        "folder": os.path.relpath(run.folder),
    }
    for name, text in lines.items():
        log.info("%-9s %s", name, text)


def count_epoch_batches(config: DictConfig, images: int) -> int:
    """Batches of an epoch, as far as trainer.limit_train_batches lets it go."""
    batches: int = images // config.data.batch_size
    limit = config.trainer.limit_train_batches
    if limit is None:
        return batches
    return int(limit * batches) if isinstance(limit, float) else min(limit, batches)


def _describe_network(config: DictConfig) -> str:
    width = config.model.get("width", 1.0)
    name = _name_target(config.model)
    return name if width == 1 else f"{name} at {width:g} of its width"


def _describe_schedule(config: DictConfig) -> str:
    name = _name_target(config.schedule)
    if "learning_rates" in config.schedule:
        return f"learning rates by the schedule ({name})"
    return f"learning rate {config.optimizer.lr:g} (schedule {name})"


def _name_target(node: DictConfig) -> str:
    return str(node._target_).rsplit(".", 1)[-1]


def write_result(run: TrainingRun) -> float:
    """result.json, the HPARAMS tab and a last line; returns the best top-1 error."""
    trainer = run.trainer
    metrics = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if not name.startswith("speed/")
    }
    best = find_best_error(trainer)
    result = {
        "best_top1_error": best,
        "final": metrics,
        "val_counts": run.module.val_counts,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
    }
    if trainer.is_global_zero:
        (run.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        log_hyperparameters(run, metrics)
        if best is not None:
            log.info("best top-1 error %.2f %% (validation, center crop)", 100 * best)
        log.info("results in %s", os.path.relpath(run.folder))
    return float("nan") if best is None else best


def find_best_error(trainer: L.Trainer) -> float | None:
    """The least value of what the best checkpoint monitors."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_score is not None:
            return float(callback.best_model_score)
    return None


def log_hyperparameters(run: TrainingRun, metrics: dict[str, float]) -> None:
    """Fills TensorBoard's HPARAMS tab with the options and the final errors."""
    if not run.trainer.logger:
        return
    errors = {}
    for name, value in metrics.items():
        if name.startswith("val/"):
            errors[name.replace("val/", "hp/")] = value
    options = {}
    for name, value in flatten(run.module.config).items():
        if not name.rsplit(".", 1)[-1].startswith("_"):
            options[name] = value if isinstance(value, int | float | str | bool) else str(value)
    run.trainer.logger.log_hyperparams(options, errors)
    run.trainer.logger.finalize("success")
