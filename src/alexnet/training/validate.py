"""From the options that were typed to a run that can be trained, before anything slow starts.

resolve_config     the stored options of a resumed run, the epochs of the recipe
check_config       all that can be known without the images: devices, processes, the network,
                   its optimizer, schedule and augmentation, built once without memory
check_data         what depends on the images, which may have to be rendered first
"""

import math
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from alexnet.data.loader import BatchSampler
from alexnet.data.store import Store
from alexnet.errors import UserError, join_problems
from alexnet.options import build_object, find_problems
from alexnet.parallel.strategies import ParallelStrategy
from alexnet.run_folder import can_be_resumed, find_checkpoint, read_config

STORED_GROUPS = ("optimizer.", "schedule.")  # in the checkpoint
PROCESSES_PER_CORE = 4  # CPU processes stand in for GPUs, so there may be more of them than cores


def resolve_config(config: DictConfig) -> DictConfig:
    """The options of the run; with `resume` the stored ones with the typed ones over them.

    Raises UserError if the run to resume can't be read, or if what was typed can't be changed.
    """
    config = deepcopy(config)
    if config.resume == "auto":
        folder = HydraConfig.get().runtime.output_dir
        config.resume = folder if can_be_resumed(folder) else None
    if config.resume:
        return _merge_stored_config(config)
    if config.trainer.max_epochs is None:
        config.trainer.max_epochs = _choose_epochs(config)
    return config


def _choose_epochs(config: DictConfig) -> int:
    """The epochs that the model's recipe has for the data."""
    choices = HydraConfig.get().runtime.choices
    epochs = config.get("epochs")
    if epochs is None:
        raise UserError(
            f"model={choices['model']} has no recipe: give `epochs` in conf/model/"
            f"{choices['model']}.yaml, or trainer.max_epochs=<n>"
        )
    return int(epochs.shapes if choices["data"] == "shapes" else epochs.other)


def _merge_stored_config(config: DictConfig) -> DictConfig:
    """The resumed run's options. Values may be changed, but no choice except `parallel`.

    Optimizer and schedule lie in the checkpoint, so that a change would have no effect.
    """
    hydra_config = HydraConfig.get()
    stored = read_config(config.resume)
    typed = [text for text in hydra_config.overrides.task if not text.startswith("resume=")]
    values = []
    refused = []
    for text in typed:
        key = text.split("=")[0]
        is_choice = key in hydra_config.runtime.choices
        if key == "parallel":
            stored.parallel = config.parallel  # every strategy reads the same checkpoint
        elif (is_choice or key.startswith(STORED_GROUPS)) and _differs(config, stored, key):
            refused.append(text)
        if not is_choice:
            values.append(text)
    if refused:
        raise UserError(
            f"resume={config.resume} keeps the run's choices: leave out {' '.join(refused)}, "
            f"or start a new run with its weights by start.run={config.resume}"
        )
    merged = OmegaConf.merge(stored, OmegaConf.from_dotlist([*values, f"resume={config.resume}"]))
    assert isinstance(merged, DictConfig)
    return merged


def _differs(config: DictConfig, stored: DictConfig, key: str) -> bool:
    """Whether a typed choice or value differs from the resumed run's."""
    typed = OmegaConf.select(config, key)
    before = OmegaConf.select(stored, key)
    if key == "model":  # a null is filled in from the data
        typed = OmegaConf.merge(typed, {"num_classes": typed.num_classes or before.num_classes})
    return bool(typed != before)


def check_config(config: DictConfig) -> None:
    """Raises UserError that lists all problems which can be known without the images.

    First come those that are found without Lightning, which takes seconds to import.
    """
    problems = find_problems(config, "train", lightning=False)  # a resumed run's come from a file
    if not problems:
        checks = [_check_devices, _check_processes, _check_compiler, _check_start]
        for check in [*checks, _check_built_parts]:
            _collect(problems, check, config)
    if not problems:
        problems += find_problems(config, "train", lightning=True)
        if config.resume:
            _collect(problems, _check_checkpoint, config)
    if problems:
        raise UserError(join_problems(problems))


def _collect(problems: list[str], check: Callable[..., Any], *arguments: Any) -> None:
    """Adds the message of a check that fails."""
    try:
        check(*arguments)
    except UserError as error:
        problems.append(str(error))


def _check_devices(config: DictConfig) -> None:
    devices = config.trainer.devices
    accelerator = config.trainer.accelerator
    if devices > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
        # Lightning starts the other ranks by the sweep's own command: each would run a whole sweep.
        raise UserError(
            f"trainer.devices={devices} can't be swept in one process: leave hydra/launcher=process"
        )
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not gpus:
        raise UserError(
            f"trainer.accelerator={accelerator}: this machine has no GPU that torch can use; "
            "leave trainer.accelerator=auto"
        )
    if accelerator != "cpu" and gpus:
        if devices > gpus:
            raise UserError(
                f"trainer.devices={devices}, but this machine has {gpus} GPU{'s' * (gpus > 1)}: "
                "trainer.accelerator=cpu uses CPU processes instead"
            )
        return
    processes = PROCESSES_PER_CORE * (os.cpu_count() or 1)
    if devices > processes:
        raise UserError(
            f"trainer.devices={devices}, but this machine has room for {processes} processes "
            f"({PROCESSES_PER_CORE} per core): use at most {processes}"
        )


def _check_processes(config: DictConfig) -> None:
    """If torchrun or SLURM starts the processes: as many as there are devices, in one folder."""
    env = os.environ
    nodes = config.trainer.num_nodes
    needed = config.trainer.devices * nodes
    if "TORCHELASTIC_RUN_ID" in env:
        starter = "torchrun"
        started = int(env["WORLD_SIZE"])
    elif "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        starter = "SLURM"  # by Lightning's own rule
        started = int(env["SLURM_NTASKS"])
    elif nodes > 1 and "MASTER_ADDR" not in env:
        raise UserError(
            f"trainer.num_nodes={nodes}: start it by torchrun or srun on each of {nodes} machines"
        )
    else:
        return
    if started != needed:
        raise UserError(
            f"{starter} starts {started} processes, but trainer.devices={config.trainer.devices} "
            f"on trainer.num_nodes={nodes} need {needed}"
        )
    if started == 1:
        return
    if starter == "SLURM" and "SLURM_STEP_ID" not in env:
        raise UserError(
            f"a SLURM job of {started} tasks starts them by srun: srun python train.py …"
        )
    typed = HydraConfig.get().overrides.hydra
    if not config.resume and not any(text.startswith("hydra.run.dir=") for text in typed):
        raise UserError(
            f"the {started} processes of {starter} need one folder: "
            "give hydra.run.dir=outputs/train/<name>"
        )


def _check_compiler(config: DictConfig) -> None:
    if config.fused and not torch.cuda.is_available():
        raise UserError("fused=true needs a GPU: leave fused=false")
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if config.compile and not any(shutil.which(name) for name in compilers):
        raise UserError(
            "compile=true needs a C++ compiler, and neither g++ nor clang++ is installed: "
            "leave compile=false"
        )


def _check_start(config: DictConfig) -> None:
    """The run whose weights are this run's initial weights has saved some."""
    if config.start.run and not config.resume:
        try:
            find_checkpoint(config.start.run, "last")
        except UserError as error:
            raise UserError(f"start.run: {error}") from None


def _check_built_parts(config: DictConfig) -> None:
    """Builds the parts that can be built without the images; the network without memory."""
    strategy: ParallelStrategy = build_object(config.parallel)
    network = _build_network_without_memory(config)
    problems: list[str] = []
    _collect(problems, _check_strategy, config, strategy, network)
    _collect(problems, _check_optimizer, config, network)
    _collect(problems, _check_augmentation, config)
    if problems:
        raise UserError(join_problems(problems))


def _build_network_without_memory(config: DictConfig) -> torch.nn.Module:
    """The network on torch's meta device; two classes stand in for a number not known yet."""
    with torch.device("meta"):
        network: torch.nn.Module = build_object(
            config.model, num_classes=config.model.num_classes or 2
        )
    return network


def _check_strategy(
    config: DictConfig, strategy: ParallelStrategy, network: torch.nn.Module
) -> None:
    world_size = config.trainer.devices * config.trainer.num_nodes
    strategy.check(network, world_size, config.trainer.precision)
    if config.compile and not strategy.can_compile:
        raise UserError("compile=true works with parallel=auto or ddp only: leave compile=false")


def _check_optimizer(config: DictConfig, network: torch.nn.Module) -> None:
    """The optimizer and the schedule, whose length matters only for its shape."""
    optimizer = build_object(config.optimizer)(network)
    build_object(config.schedule)(optimizer, total_steps=100, epoch_steps=10)


def _check_augmentation(config: DictConfig) -> None:
    crop = config.augment.crop
    build_object(config.augment)(np.zeros((crop, crop, 3)), np.zeros(3), np.eye(3))


def _check_checkpoint(config: DictConfig) -> None:
    """The run to resume has this network's weights, and epochs left to train."""
    # Needs Lightning, which takes seconds to import.
    from alexnet.training.checkpointing import (
        count_finished_epochs,
        read_checkpoint,
        select_weights,
    )

    checkpoint = read_checkpoint(find_checkpoint(config.resume, "last"))
    select_weights(_build_network_without_memory(config), checkpoint)
    done = count_finished_epochs(checkpoint)
    if done >= config.trainer.max_epochs:
        raise UserError(
            f"resume={config.resume} has finished {done} epochs: give trainer.max_epochs=<more>"
        )


def count_training_images(config: DictConfig) -> int | None:
    """The training images of a set that is rendered; None for other sets."""
    make = config.data.get("make")
    return None if make is None else make.get("train")


def check_batches(config: DictConfig, images: int) -> None:
    """Raises UserError if the training images don't make batches for the devices."""
    batch_size = config.data.batch_size
    world_size = config.trainer.devices * config.trainer.num_nodes
    shards = build_object(config.parallel).count_batch_shards(world_size)
    sampler = BatchSampler(
        images=images,
        batch_size=batch_size,
        seed=config.seed,
        world_size=shards,
        train=True,
    )
    shared_by = config.augment.shared_by
    if shards > 1 and (batch_size // shards) % shared_by:
        raise UserError(
            f"data.batch_size={batch_size} must give each device a multiple of "
            f"augment.shared_by={shared_by} images"
        )
    _check_share_of_batches(config, sampler.batches)


def _check_share_of_batches(config: DictConfig, batches: int) -> None:
    """A share of an epoch must be long enough for the loss to be logged."""
    share = config.trainer.limit_train_batches
    interval = config.trainer.log_every_n_steps
    if not isinstance(share, float):
        return
    needed = min(interval, batches)
    kept = int(share * batches)
    if kept < needed:
        least = math.ceil(100 * needed / batches) / 100
        raise UserError(
            f"trainer.limit_train_batches={share} keeps {kept} of {batches} batches, fewer than "
            f"trainer.log_every_n_steps={interval}: give at least {least}, or a number of batches"
        )


def check_data(config: DictConfig, store: Store) -> None:
    """Raises UserError that lists what does not fit the images."""
    problems: list[str] = []
    classes = len(store.classes)
    if classes < 2:
        problems.append(
            f"data.folder={config.data.folder} has one class: a classifier needs at least two"
        )
    if config.model.num_classes < classes:
        problems.append(
            f"model.num_classes={config.model.num_classes}, but the data has {classes} classes: "
            "leave it null, or give at least as many"
        )
    _collect(problems, check_batches, config, len(store.splits["train"]))
    if config.augment.crop > store.size:
        problems.append(
            f"augment.crop={config.augment.crop} is larger than the store's images of "
            f"{store.size} pixels: give at most {store.size}"
        )
    if problems:
        raise UserError(join_problems(problems))
