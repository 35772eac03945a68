"""One run, from its configuration to result.json."""

import json
import logging
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
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch.distributed import DistError

from alexnet.data.datamodule import StoreData
from alexnet.nets.layers import compile_network
from alexnet.run_folder import find_checkpoint, flatten, write_config
from alexnet.training.checkpointing import AtomicIO
from alexnet.training.checkpoints import load_initial_weights, read_checkpoint
from alexnet.training.module import Classifier
from alexnet.training.validate import checked

log = logging.getLogger(__name__)
# Gloo's errors have no type of their own, and the second not even its name.
GLOO = ("gloo", "Application timeout caused pair closure")


@dataclass
class Run:
    folder: Path
    config: DictConfig
    trainer: L.Trainer
    module: Classifier
    data: StoreData
    checkpoint: Path | None  # that the run goes on from


def train(cfg: DictConfig) -> float:
    """Trains as `cfg` says and gives the best top-1 validation error, for sweeps that optimize it."""
    cfg = checked(cfg)
    run = build(cfg)
    write_start(run)
    with lost_process(run.folder):
        run.trainer.fit(run.module, datamodule=run.data, ckpt_path=run.checkpoint)
    return write_result(run)


@contextmanager
def lost_process(folder: Path) -> Iterator[None]:
    """Raises ConnectionError with the remedy if another process of the run ended or is silent."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, DistError) and not any(text in str(error) for text in GLOO):
            raise
        raise ConnectionError(
            f"another process of this run ended, or was silent for parallel.timeout: look into its output; "
            f"resume={folder} goes on ({str(error).splitlines()[0]})"
        ) from error


def build(cfg: DictConfig) -> Run:
    """Everything that a run needs. Raises ValueError."""
    quiet_lightning()
    data: StoreData = instantiate(cfg.data)
    L.seed_everything(cfg.seed, verbose=False)
    net = instantiate(cfg.model)
    if not cfg.resume and cfg.start.run:
        load_initial_weights(net, find_checkpoint(cfg.start.run, "last"), cfg.start.layers)
    net = net.to(memory_format=torch.channels_last)
    if cfg.fused:
        from alexnet.nets.fused import fuse  # Triton is not everywhere

        fuse(net)
    if cfg.compile:
        compile_network(net)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    form = instantiate(cfg.parallel)
    rules = instantiate(cfg.optimizer), instantiate(cfg.schedule)
    module = Classifier(net, data.classes, *rules, form, cfg.seed, plain)
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values()]
    strategy = form.strategy(cfg.trainer.devices * cfg.trainer.num_nodes)
    checkpoint = find_checkpoint(cfg.resume, "last") if cfg.resume else None
    logger = instantiate(
        cfg.logger, purge_step=read_checkpoint(checkpoint)["global_step"] if checkpoint else None
    )
    accelerator = cfg.trainer.accelerator
    if accelerator == "auto":  # Lightning's would take an Apple GPU, which can't sum in float64
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    parts = {"strategy": strategy, "callbacks": callbacks, "logger": logger, "plugins": AtomicIO()}
    trainer = instantiate(cfg.trainer, accelerator=accelerator, **parts)
    if cfg.compile and trainer.strategy.root_device.type == "cuda":
        data.augment.compile()
    return Run(Path(HydraConfig.get().runtime.output_dir), cfg, trainer, module, data, checkpoint)


NOISE = ("Tip", "TPU available", "Loading `train_dataloader`", "distributed_backend=")


def quiet_lightning() -> None:
    """Lightning's messages through Hydra's handlers once, without advertisements and others' deprecations."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 against torch 2.15
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # torchmetrics has summed them
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # a run that goes on
    warnings.filterwarnings(
        "ignore", message=".*could not find the monitored key.*"
    )  # of one without validation
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(text in record.getMessage() for text in NOISE)
    )


@rank_zero_only
def write_start(run: Run) -> None:
    """config.yaml and run.json: what is needed to do this run again."""
    write_config(run.config, run.folder)
    device = run.trainer.strategy.root_device
    packages = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "numpy")
    facts = {
        "command": sys.argv,
        "seed": run.config.seed,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or "CPU",
        "devices": run.trainer.world_size,
        "parameters": sum(p.numel() for p in run.module.net.parameters()),
    }
    (run.folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
    log.info(
        "run folder %s, %d parameters, %d classes",
        run.folder,
        facts["parameters"],
        len(run.module.classes),
    )


def git_commit() -> str | None:
    """The checkout's commit, with "+" if files differ from it; None outside git."""
    here = Path(__file__).parent
    try:
        commit = subprocess.check_output(
            ["git", "rev-parse", "HEAD"], cwd=here, text=True, stderr=subprocess.DEVNULL
        )
        changed = subprocess.check_output(
            ["git", "status", "--porcelain", "-uno"], cwd=here, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if changed else "")


def write_result(run: Run) -> float:
    """result.json, the HPARAMS tab and a last line. Gives the best top-1 error."""
    metrics = {
        k: float(v) for k, v in run.trainer.callback_metrics.items() if not k.startswith("speed/")
    }
    kept = [
        c.best_model_score
        for c in run.trainer.checkpoint_callbacks
        if isinstance(c, ModelCheckpoint)
    ]
    best = float(kept[0]) if kept and kept[0] is not None else None
    result = {
        "best_top1_error": best,
        "final": metrics,
        "val_counts": run.module.val_counts,
        "epochs": run.trainer.current_epoch,
        "steps": run.trainer.global_step,
    }
    if run.trainer.is_global_zero:
        (run.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        if run.trainer.logger:
            errors = {
                f"hp/{k.removeprefix('val/')}": v
                for k, v in metrics.items()
                if k.startswith("val/")
            }
            run.trainer.logger.log_hyperparams(flatten(run.module.config), errors)
            run.trainer.logger.finalize("success")
        found = (
            ""
            if best is None
            else f"best top-1 error {100 * best:.2f} % (validation, center crop); "
        )
        log.info("%sall in %s", found, run.folder)
    return best if best is not None else float("nan")
