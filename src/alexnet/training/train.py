"""One run, from its configuration to result.json."""

import json
import logging
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from alexnet.data.datamodule import StoreData
from alexnet.entry import check_types, clear_errors, read_run
from alexnet.training.module import Classifier

log = logging.getLogger(__name__)


@dataclass
class Run:
    folder: Path
    config: dict[str, Any]
    trainer: L.Trainer
    module: Classifier
    data: StoreData
    checkpoint: Path | None  # that the run goes on from


def train(cfg: DictConfig) -> float:
    """Trains as `cfg` says and gives the best top-1 validation error, for sweeps that optimise it."""
    with clear_errors():
        run = build(cfg)
    write_start(run)
    run.trainer.fit(run.module, datamodule=run.data, ckpt_path=run.checkpoint)
    if run.trainer.received_sigterm:
        sys.exit(143)
    return write_result(run)


def build(cfg: DictConfig) -> Run:
    """Everything that a run needs, checked before the first step. Raises ValueError or FileNotFoundError."""
    check_types(cfg)
    checkpoint = None
    if cfg.resume:
        cfg = resumed(cfg)
        checkpoint = last_checkpoint(Path(cfg.resume))
    check_devices(cfg.trainer)
    data: StoreData = instantiate(cfg.data)
    if cfg.model.num_classes is None:
        cfg.model.num_classes = len(data.classes)
    if cfg.model.num_classes < len(data.classes):
        raise ValueError(
            f"model.num_classes={cfg.model.num_classes}, but the data has {len(data.classes)} classes: "
            "leave it null, or give at least as many"
        )
    L.seed_everything(cfg.seed, verbose=False)
    net = instantiate(cfg.model).to(memory_format=torch.channels_last)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    world_size = cfg.trainer.devices * cfg.trainer.num_nodes
    order = data.order("train", 0, world_size)
    batches = order.batches
    if isinstance(cfg.trainer.limit_train_batches, int):
        batches = min(batches, cfg.trainer.limit_train_batches)
    total_steps = cfg.trainer.max_steps if cfg.trainer.max_steps > 0 else batches * cfg.trainer.max_epochs
    module = Classifier(
        net, data.classes, instantiate(cfg.optimizer), instantiate(cfg.schedule), total_steps, cfg.seed, config
    )
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values()]
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=instantiate(cfg.logger))
    quiet_lightning()
    folder = Path(HydraConfig.get().runtime.output_dir)
    return Run(folder, config, trainer, module, data, checkpoint)


def resumed(cfg: DictConfig) -> DictConfig:
    """The stored configuration of `cfg.resume`, with the values typed now over it."""
    stored = read_run(cfg.resume)
    typed = [text for text in HydraConfig.get().overrides.task if not text.startswith("resume=")]
    groups = [text for text in typed if text.split("=")[0] in HydraConfig.get().runtime.choices]
    if groups:
        raise ValueError(f"resume={cfg.resume} keeps the run's choices: leave out {' '.join(groups)}")
    return DictConfig(OmegaConf.merge(stored, OmegaConf.from_dotlist([*typed, f"resume={cfg.resume}"])))


def last_checkpoint(folder: Path) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise FileNotFoundError(f"resume={folder} has no checkpoints/last.ckpt: no epoch of that run ended")
    return path


def check_devices(trainer: DictConfig) -> None:
    """Raises ValueError if there are fewer devices than asked for."""
    devices, accelerator = trainer.devices, trainer.accelerator
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices={devices} must be a whole number of at least 1")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(f"trainer.accelerator={accelerator}: this machine has no GPU that torch can use")
    if accelerator == "auto" and torch.cuda.is_available() or accelerator in ("gpu", "cuda"):
        there, kind = torch.cuda.device_count(), "GPUs"
    else:
        # CPU processes stand in for GPUs, so there may be more of them than cores, within reason.
        there, kind = 4 * (os.cpu_count() or 1), "processes, four a core"
    if devices > there:
        raise ValueError(f"trainer.devices={devices}, but this machine has {there} {kind}")


def quiet_lightning() -> None:
    """Lightning's messages through Hydra's handlers once, without its advertisement."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip" not in record.getMessage()
    )


@rank_zero_only
def write_start(run: Run) -> None:
    """config.yaml and run.json: what is needed to do this run again."""
    OmegaConf.save(OmegaConf.create(run.config), run.folder / "config.yaml")
    packages = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "numpy")
    facts = {
        "command": sys.argv,
        "seed": run.config["seed"],
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
        "devices": run.trainer.world_size,
        "parameters": sum(p.numel() for p in run.module.net.parameters()),
    }
    (run.folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
    log.info("run folder %s, %d parameters, %d classes", run.folder, facts["parameters"], len(run.module.classes))


def git_commit() -> str | None:
    """The checkout's commit, with "+" if files differ from it; None outside git."""
    here = Path(__file__).parent
    try:
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=here, text=True, stderr=subprocess.DEVNULL)
        changed = subprocess.check_output(["git", "status", "--porcelain", "-uno"], cwd=here, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if changed else "")


def write_result(run: Run) -> float:
    """result.json, the HPARAMS tab and a last line. Gives the best top-1 error."""
    metrics = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    checkpoint: Any = run.trainer.checkpoint_callback
    best = float(checkpoint.best_model_score) if checkpoint and checkpoint.best_model_score is not None else None
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
            errors = {f"hp/{k.removeprefix('val/')}": v for k, v in metrics.items() if k.startswith("val/")}
            run.trainer.logger.log_hyperparams(flat(run.config), errors)
            run.trainer.logger.finalize("success")
        if best is not None:
            log.info("best top-1 error %.2f %% (validation, centre crop); all in %s", 100 * best, run.folder)
    return best if best is not None else float("nan")


def flat(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    """{"optimizer.lr": 0.01, …} without the class names."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            values |= flat(value, f"{path}{key}.")
        elif not key.startswith("_"):
            values[path + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return values
