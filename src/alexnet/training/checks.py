"""All that can be checked of a run before Lightning is imported, which takes seconds; first what needs no torch."""

import os
import shutil

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from alexnet.data.store import Store, open_store
from alexnet.entry import checkpoint_file, read_run


def checked(cfg: DictConfig) -> DictConfig:
    """The run's configuration, or with `resume` the stored one with the values typed now over it.

    Raises ValueError or FileNotFoundError if it can't be trained."""
    if cfg.resume:
        cfg = _resumed(cfg)
    store = open_store(cfg.data.folder, instantiate(cfg.data.make))
    if cfg.model.num_classes is None:
        cfg.model.num_classes = len(store.classes)
    if cfg.model.num_classes < len(store.classes):
        raise ValueError(
            f"model.num_classes={cfg.model.num_classes}, but the data has {len(store.classes)} classes: "
            "leave it null, or give at least as many"
        )
    _check_devices(cfg.trainer)
    _check_net(cfg)
    _check_batches(cfg, store)
    return cfg


def _resumed(cfg: DictConfig) -> DictConfig:
    hydra = HydraConfig.get()
    stored = read_run(cfg.resume)
    checkpoint_file(cfg.resume, "last")
    typed = [text for text in hydra.overrides.task if not text.startswith("resume=")]
    groups = [text for text in typed if text.split("=")[0] in hydra.runtime.choices]
    values = [text for text in typed if text not in groups]
    if spread := [text for text in groups if text.startswith("parallel=")]:
        stored.parallel = cfg.parallel  # a run goes on in any form
    if others := [text for text in groups if text not in spread]:
        raise ValueError(f"resume={cfg.resume} keeps the run's choices: leave out {' '.join(others)}")
    return DictConfig(OmegaConf.merge(stored, OmegaConf.from_dotlist([*values, f"resume={cfg.resume}"])))


def _check_devices(trainer: DictConfig) -> None:
    import torch

    devices, accelerator = trainer.devices, trainer.accelerator
    if devices > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
        # Lightning starts the other ranks by the sweep's own command, and each would run a sweep of its own.
        raise ValueError(f"trainer.devices={devices} can't be swept in one process: leave hydra/launcher=process")
    if devices < 1:
        raise ValueError(f"trainer.devices={devices} must be at least 1")
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not gpus:
        raise ValueError(f"trainer.accelerator={accelerator}: this machine has no GPU that torch can use")
    if accelerator != "cpu" and gpus:
        there, kind = gpus, "GPUs"
    else:
        # CPU processes stand in for GPUs, so there may be more of them than cores, within reason.
        there, kind = 4 * (os.cpu_count() or 1), "processes, four a core"
    if devices > there:
        raise ValueError(f"trainer.devices={devices}, but this machine has {there} {kind}")


def _check_batches(cfg: DictConfig, store: Store) -> None:
    from alexnet.data.loader import Order

    world_size = cfg.trainer.devices * cfg.trainer.num_nodes
    shares = instantiate(cfg.parallel).shares(world_size)
    Order(len(store.splits["train"]), cfg.data.batch_size, cfg.seed, 0, shares, train=True)


def _check_compile(parallel: DictConfig) -> None:
    if not parallel._target_.endswith(".DataParallel"):
        raise ValueError("compile=true works with parallel=auto or ddp only: leave compile=false")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise ValueError("compile=true needs a C++ compiler, and neither g++ nor clang++ is here: leave compile=false")


def _check_net(cfg: DictConfig) -> None:
    import torch

    from alexnet.training.checkpoints import read_checkpoint, weights_for

    net = instantiate(cfg.model)
    world_size = cfg.trainer.devices * cfg.trainer.num_nodes
    instantiate(cfg.parallel).check(net, world_size, cfg.trainer.precision)
    if cfg.fused and not torch.cuda.is_available():
        raise ValueError("fused=true needs a GPU: leave fused=false")
    if cfg.compile:
        _check_compile(cfg.parallel)
    if cfg.resume:
        checkpoint = read_checkpoint(checkpoint_file(cfg.resume, "last"))
        weights_for(net, checkpoint)
        done = checkpoint["epoch"] + 1
        if done >= cfg.trainer.max_epochs:
            raise ValueError(f"resume={cfg.resume} has trained {done} epochs: give trainer.max_epochs=… beyond them")
