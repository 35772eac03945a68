"""All that can be checked of a run before Lightning is imported, which takes seconds; first what needs no torch."""

import os
import shutil
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from alexnet.data.store.reader import Store, open_store
from alexnet.parallel.strategies import DataParallel
from alexnet.run_folder import find_checkpoint, read_config


def checked(cfg: DictConfig) -> DictConfig:
    """The run's configuration, or with `resume` the stored one with the values typed now over it.

    Raises ValueError or FileNotFoundError if it can't be trained."""
    if cfg.resume == "auto":
        cfg.resume = _begun()
    if cfg.resume:
        cfg = _resumed(cfg)
    store = open_store(
        cfg.data.folder, instantiate(cfg.data.make), cfg.data.get("cache"), cfg.data.get("cache_gb")
    )
    if cfg.model.num_classes is None:
        cfg.model.num_classes = len(store.classes)
    if cfg.model.num_classes < len(store.classes):
        raise ValueError(
            f"model.num_classes={cfg.model.num_classes}, but the data has {len(store.classes)} classes: "
            "leave it null, or give at least as many"
        )
    if cfg.model.num_classes < 2:
        raise ValueError(
            f"data.folder={cfg.data.folder} has one class: a network that tells classes separate_layers needs two"
        )
    if (cfg.trainer.max_epochs or 0) < 1:
        raise ValueError(
            f"trainer.max_epochs={cfg.trainer.max_epochs} must be at least 1, since schedules go by it; "
            "trainer.max_steps=<n> ends a run sooner"
        )
    _check_devices(cfg.trainer)
    _check_processes(cfg)
    _check_net(cfg)
    _check_batches(cfg, store)
    return cfg


def _begun() -> str | None:
    """The run's folder if it holds a checkpoint."""
    folder = HydraConfig.get().runtime.output_dir
    return folder if any(Path(folder).glob("checkpoints/*.ckpt")) else None


def _resumed(cfg: DictConfig) -> DictConfig:
    hydra = HydraConfig.get()
    stored = read_config(cfg.resume)
    typed = [text for text in hydra.overrides.task if not text.startswith("resume=")]
    groups = [text for text in typed if text.split("=")[0] in hydra.runtime.choices]
    values = [text for text in typed if text not in groups]
    if spread := [text for text in groups if text.startswith("parallel=")]:
        stored.parallel = cfg.parallel  # a run goes on in any form
    fixed = [
        text for text in values if text.startswith(("optimizer.", "schedule."))
    ]  # they lie in the checkpoint
    asked = [text for text in groups if text not in spread] + fixed
    if others := [text for text in asked if _differs(text.split("=")[0], cfg, stored)]:
        raise ValueError(
            f"resume={cfg.resume} keeps the run's choices: leave out {' '.join(others)}, "
            f"or begin a new run with its weights by start.run={cfg.resume}"
        )
    return DictConfig(
        OmegaConf.merge(stored, OmegaConf.from_dotlist([*values, f"resume={cfg.resume}"]))
    )


def _differs(key: str, cfg: DictConfig, stored: DictConfig) -> bool:
    """Whether a choice or a value typed now is another than the run's."""
    if key == "model" and cfg.model.num_classes is None:
        cfg.model.num_classes = stored.model.num_classes
    return OmegaConf.select(cfg, key) != OmegaConf.select(stored, key)


def _check_devices(trainer: DictConfig) -> None:
    import torch

    devices, accelerator = trainer.devices, trainer.accelerator
    if devices > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
        # Lightning starts the other ranks by the sweep's own command, and each would run a sweep of its own.
        raise ValueError(
            f"trainer.devices={devices} can't be swept in one process: leave hydra/launcher=process"
        )
    if devices < 1:
        raise ValueError(f"trainer.devices={devices} must be at least 1")
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(
            f"trainer.accelerator={accelerator} can't be used: choose auto, cpu or gpu, which is CUDA's"
        )
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not gpus:
        raise ValueError(
            f"trainer.accelerator={accelerator}: this machine has no GPU that torch can use"
        )
    if accelerator != "cpu" and gpus:
        there, kind = (
            gpus,
            f"GPU{'s' * (gpus > 1)}: trainer.accelerator=cpu takes CPU processes instead",
        )
    else:
        # CPU processes stand in for GPUs, so there may be more of them than cores, within reason.
        there, kind = 4 * (os.cpu_count() or 1), "processes, four a core"
    if devices > there:
        raise ValueError(f"trainer.devices={devices}, but this machine has {there} {kind}")


def _check_processes(cfg: DictConfig) -> None:
    """Of a run whose processes torchrun or srun starts: as many as there are devices, in one folder."""
    env, devices, nodes = os.environ, cfg.trainer.devices, cfg.trainer.num_nodes
    named = cfg.resume or any(
        text.startswith("hydra.run.dir=") for text in HydraConfig.get().overrides.hydra
    )
    if "TORCHELASTIC_RUN_ID" in env:
        starter, started = "torchrun", int(env["WORLD_SIZE"])
    elif "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    ):  # Lightning's rule
        starter, started = "SLURM", int(env["SLURM_NTASKS"])
    elif nodes > 1 and "MASTER_ADDR" not in env:
        raise ValueError(
            f"trainer.num_nodes={nodes}: start it by torchrun or srun on each of {nodes} machines"
        )
    else:
        return
    if started != devices * nodes:
        raise ValueError(
            f"{starter} starts {started} processes, but trainer.devices={devices} on trainer.num_nodes={nodes} "
            f"need {devices * nodes}"
        )
    if starter == "SLURM" and started > 1 and "SLURM_STEP_ID" not in env:
        raise ValueError(
            f"a SLURM job of {started} tasks starts them by srun: srun python train.py …"
        )
    if started > 1 and not named:
        raise ValueError(
            f"the {started} processes of {starter} need one folder: give hydra.run.dir=outputs/train/<name>"
        )


def _check_batches(cfg: DictConfig, store: Store) -> None:
    from alexnet.data.loader import BatchSampler

    world_size = cfg.trainer.devices * cfg.trainer.num_nodes
    shares = instantiate(cfg.parallel).shares(world_size)
    BatchSampler(len(store.splits["train"]), cfg.data.batch_size, cfg.seed, 0, shares, train=True)
    shared = OmegaConf.select(cfg, "augment.shared_by", default=1)
    if shares > 1 and (cfg.data.batch_size // shares) % shared:
        raise ValueError(
            f"data.batch_size={cfg.data.batch_size} must give each device augment.shared_by={shared} images, or a "
            "multiple of it"
        )


def _check_compile(parallel: DictConfig) -> None:
    if not parallel._target_.endswith(".DataParallel"):
        raise ValueError("compile=true works with parallel=auto or ddp only: leave compile=false")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise ValueError(
            "compile=true needs a C++ compiler, and neither g++ nor clang++ is here: leave compile=false"
        )


def _check_net(cfg: DictConfig) -> None:
    import torch

    from alexnet.training.checkpoints import read_checkpoint, select_weights

    net = instantiate(cfg.model)
    world_size = cfg.trainer.devices * cfg.trainer.num_nodes
    form = instantiate(cfg.parallel)
    form.check(net, world_size, cfg.trainer.precision)
    if cfg.optimizer.get("fused") and type(form) is not DataParallel:
        raise ValueError(
            "optimizer.fused=true: torch has no fused step for spread parameters, leave it out"
        )
    if cfg.fused and not torch.cuda.is_available():
        raise ValueError("fused=true needs a GPU: leave fused=false")
    if cfg.compile:
        _check_compile(cfg.parallel)
    if cfg.resume:
        checkpoint = read_checkpoint(find_checkpoint(cfg.resume, "last"))
        select_weights(net, checkpoint)
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        if done >= cfg.trainer.max_epochs:
            raise ValueError(
                f"resume={cfg.resume} has trained {done} epochs: give trainer.max_epochs=… beyond them"
            )
