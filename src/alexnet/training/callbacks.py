"""What a run shows while it trains: progress, speed, figures, and warnings."""

import logging
import math
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from pydantic import NonNegativeFloat, PositiveInt
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alexnet.errors import UserError
from alexnet.training.figures import draw_kernels, draw_predictions, sample_images, stack_images
from alexnet.training.module import Classifier
from alexnet.training.trainer_parts import get_data, get_log_interval, get_train_loader

log = logging.getLogger(__name__)


def get_classifier(module: L.LightningModule) -> Classifier:
    """The module by its type, which Lightning's hooks do not declare."""
    assert isinstance(module, Classifier)
    return module


class CheckRanksAgree(L.Callback):
    """Raises UserError if a process has other options or another store than the first.

    The processes of a run on several machines are started one by one, each with its own options.
    """

    COMPARED = ("seed", "model", "optimizer", "schedule", "augment", "parallel")

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        # Only what decides the numbers: paths, for one, may differ between machines.
        config = get_classifier(module).config
        own: dict[str, object] = {name: config[name] for name in self.COMPARED}
        own["data"] = get_data(trainer).store.manifest
        gathered: list[dict[str, object]] = [{}] * trainer.world_size
        torch.distributed.all_gather_object(gathered, own)
        differing = []
        for name in own:
            values = [options[name] for options in gathered]
            if any(value != values[0] for value in values):
                differing.append(name)
        if differing:
            raise UserError(
                f"ranks disagree on {', '.join(differing)}: start every rank with the same options "
                "and the same data"
            )


class LogLearningRate(LearningRateMonitor):
    """Lightning's, which refuses a run without a logger (`logger=none`)."""

    def on_train_start(self, trainer: L.Trainer, *args: object, **kwargs: object) -> None:
        if trainer.loggers:
            super().on_train_start(trainer, *args, **kwargs)

    def on_train_batch_start(self, trainer: L.Trainer, *args: object, **kwargs: object) -> None:
        if trainer.loggers:
            super().on_train_batch_start(trainer, *args, **kwargs)


class LogSpeed(L.Callback):
    """Logs images per second and the fraction of time spent waiting for data.

    Both are measured from one logging step to the next, within an epoch.
    """

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restart(trainer)  # Lightning does not start the epoch within which a run resumes

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restart(trainer)

    def _restart(self, trainer: L.Trainer) -> None:
        self.images = 0
        self.started_at = time.perf_counter()
        self.waited_before = get_train_loader(trainer).waited

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        self.images += get_data(trainer).batch_size  # not the batch's own: ranks may share images
        if trainer.global_step % get_log_interval(trainer):
            return
        seconds = time.perf_counter() - self.started_at
        waited = get_train_loader(trainer).waited - self.waited_before
        module.log("speed/images_per_second", self.images / seconds)
        module.log("speed/data_wait", waited / seconds)
        self._restart(trainer)


class ShowProgress(L.Callback):
    """A progress bar on a terminal; in the log file, and elsewhere, a line every `seconds`."""

    def __init__(self, seconds: NonNegativeFloat):
        self.seconds = seconds
        # Only on a terminal, and in the first process.
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started_at = time.monotonic()
        self.shown_at = self.started_at
        self.first_step = trainer.global_step
        self.total_steps = int(trainer.estimated_stepping_batches)
        if trainer.is_global_zero and sys.stdout.isatty():
            self._start_bar()

    def _start_bar(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            transient=True,
        )
        self.task = self.bar.add_task(
            "training", total=self.total_steps, completed=self.first_step, numbers=""
        )
        self.bar.start()
        console = _find_console_handler()
        if console:
            console.setStream(sys.stdout)  # rich's, which writes above the bar
            console.addFilter(_is_not_progress)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        epoch = trainer.current_epoch + 1
        if self.bar:
            text = f"epoch {epoch}/{trainer.max_epochs}"
            self.bar.update(self.task, completed=step, description=text)
        now = time.monotonic()
        if now - self.shown_at < self.seconds:
            return
        self.shown_at = now
        numbers = _describe_metrics(trainer.callback_metrics)
        if self.bar:
            self.bar.update(self.task, numbers=numbers)
        # Time and steps since this process started, which may have resumed the run.
        seconds_a_step = (now - self.started_at) / (step - self.first_step)
        left = timedelta(seconds=round(seconds_a_step * (self.total_steps - step)))
        place = f"epoch {epoch} step {step}/{self.total_steps}"
        log.info("%s  %s  ETA %s", place, numbers, left, extra={"is_progress": True})

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        log.info(
            "epoch %d  validation: top-1 error %.2f %%, top-5 error %.2f %%, loss %.4f",
            trainer.current_epoch + 1,
            100 * metrics["val/top1_error"],
            100 * metrics["val/top5_error"],
            metrics["val/loss"],
        )

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self.bar is None:
            return
        self.bar.stop()
        self.bar = None
        console = _find_console_handler()
        if console:
            console.setStream(sys.stdout)
            console.removeFilter(_is_not_progress)


def _describe_metrics(metrics: Mapping[str, Tensor]) -> str:
    text = ""
    if "train/loss" in metrics:
        text += f"loss {float(metrics['train/loss']):.4f}"
    if "speed/images_per_second" in metrics:
        speed = float(metrics["speed/images_per_second"])
        wait = float(metrics["speed/data_wait"])
        text += f"  {speed:,.0f} images/s, {wait:.1%} waiting for data"
    return text


def _find_console_handler() -> "logging.StreamHandler[Any] | None":
    """The log's handler for the terminal, if it has one."""
    for handler in logging.root.handlers:
        if type(handler) is logging.StreamHandler:  # and not a file's, which is a subclass
            return handler
    return None


def _is_not_progress(record: logging.LogRecord) -> bool:
    """Keeps the lines that the bar shows off the terminal; the log file has them."""
    return not hasattr(record, "is_progress")


class StuckLoss(L.Callback):
    """Measures how long the loss is stuck at chance, ln(classes), and warns if it is for long.

    Logs `train/images_until_learning`, the number of images until the loss is more than 1 % lower.

    Arguments:
        images: warns after so many with a loss within 1 % of chance.
        stop: ends the run when the loss is no longer stuck, to measure no more than that
            (`sweep=claims/stuck_loss`).
    """

    AVERAGED_STEPS = 10
    TOLERANCE = 0.01
    SAVED = ("images_seen", "images_stuck", "images_until_learning", "summed_steps", "has_warned")

    def __init__(self, images: PositiveInt, stop: bool):
        self.images = images
        self.stop = stop
        self.images_seen = 0
        self.images_stuck = 0
        self.images_until_learning = 0  # 0: the loss is stuck as yet
        self.has_warned = False
        # Of the steps since the loss was read last.
        self.summed_steps = 0
        self.summed_loss: float | Tensor = 0.0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        batch_size = get_data(trainer).batch_size
        self.images_seen += batch_size
        if self.images_until_learning:
            return
        # Summed on the device and read only now and then, since reading waits for the device.
        assert isinstance(outputs, Mapping)
        self.summed_loss += outputs["loss"].detach()
        self.summed_steps += 1
        if self.summed_steps < self.AVERAGED_STEPS:
            return
        # With equal probabilities for all classes, -log(1 / classes).
        chance = math.log(len(get_classifier(module).classes))
        ratio = float(self.summed_loss) / self.AVERAGED_STEPS / chance
        self.summed_loss = 0.0
        self.summed_steps = 0
        if abs(ratio - 1) <= self.TOLERANCE:
            self.images_stuck += self.AVERAGED_STEPS * batch_size
        else:
            self.images_stuck = 0
        if ratio < 1 - self.TOLERANCE:
            self.images_until_learning = self.images_seen
            trainer.should_stop = self.stop
        elif self.images_stuck >= self.images and not self.has_warned:
            self.has_warned = True
            self._warn(trainer, chance)

    def _warn(self, trainer: L.Trainer, chance: float) -> None:
        if not trainer.is_global_zero:
            return
        log.warning(
            "the loss has been stuck at chance, within 1 %% of %.2f, for %d images: try "
            "model.init=authors or kaiming, another optimizer.lr (now %g) or another seed, and "
            "check the labels in the store's contact sheet",
            chance,
            self.images_stuck,
            trainer.optimizers[0].param_groups[0]["lr"],
        )

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.images_until_learning:
            module.log("train/images_until_learning", float(self.images_until_learning))

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self.SAVED}
        return {**state, "summed_loss": float(self.summed_loss)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


class LogFigures(L.Callback):
    """Images in TensorBoard after each epoch; nothing where TensorBoard is not among the loggers.

    `conv1/kernels` has the kernels of conv1 by tower (Fig. 3), and `validation/predictions` eight
    validation images with their five likeliest classes (Fig. 4, left).
    """

    IMAGES = 8
    ZOOM = 4  # of the kernels

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards:
            return
        data = get_data(trainer)
        net = get_classifier(module).net
        sample = sample_images(data.store.splits["val"], self.IMAGES)
        # On every rank, since the net may be sharded.
        views = data.augment.crop_center(sample.images.to(module.device))
        probabilities = _predict(net, trainer.precision_plugin.convert_input(views))
        kernels = _gather_kernels(net)
        if not trainer.is_global_zero:
            return
        # Numbered as Lightning numbers its scalars, so that a resumed run drops what it repeats.
        step = trainer.global_step - 1
        for board in boards:
            if kernels is not None:
                towers = draw_kernels(kernels, getattr(net, "towers", 1))
                pixels = np.asarray(stack_images(towers, self.ZOOM))
                board.experiment.add_image("conv1/kernels", pixels, step, dataformats="HWC")
            figure = draw_predictions(sample.images, sample.labels, probabilities, data.store.names)
            board.experiment.add_figure("validation/predictions", figure, step)


@torch.no_grad()
def _predict(net: nn.Module, images: Tensor) -> Tensor:
    with torch.compiler.set_stance("force_eager"):  # not compiled once more for eight images
        logits: Tensor = net(images)
    return logits.float().softmax(1).cpu()


def _gather_kernels(net: nn.Module) -> Tensor | None:
    """conv1's weight on the CPU; None if the net has no such layer. Called by every rank."""
    weight: Tensor | None = dict(net.named_parameters()).get("conv1.weight")
    if isinstance(weight, DTensor):
        weight = weight.full_tensor()
    return None if weight is None else weight.detach().float().cpu()
