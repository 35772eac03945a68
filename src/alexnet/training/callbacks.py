"""What is seen of a run while it goes: progress, speed and images."""

import logging
import math
import sys
import time
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from torch.distributed.tensor import DTensor

from alexnet.data.datamodule import StoreData
from alexnet.data.loader import Loader
from alexnet.training.module import Classifier

log = logging.getLogger(__name__)
STEPS = 10  # over which the plateau's loss is averaged


class ProcessesDiffer(ValueError):
    """Two processes of a run would train something else."""


class CheckRanksAgree(L.Callback):
    """Raises ProcessesDiffer if a process has other options or another store, as on another machine it may."""

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        assert isinstance(module, Classifier)
        data: StoreData = trainer.datamodule  # type: ignore[attr-defined]
        mine = {
            name: module.config[name]
            for name in ("seed", "model", "optimizer", "schedule", "augment", "parallel")
        }
        mine["data"] = data.store.manifest
        everyone: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everyone, mine)
        differ = [
            name for name in mine if any(other[name] != everyone[0][name] for other in everyone)
        ]
        if differ:
            raise ProcessesDiffer(
                f"the processes of this run have different {', '.join(differ)}: give all the same"
            )


class Speed(L.Callback):
    """Logs training images per second and the share of time spent waiting for data, over each logging interval."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restart(trainer)  # a run that goes on within an epoch does not start it

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restart(trainer)

    def _restart(self, trainer: L.Trainer) -> None:
        self.images, self.since, self.waited = 0, time.perf_counter(), _loader(trainer).waited

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.images += trainer.datamodule.batch_size  # type: ignore[attr-defined]  # ranks may share images
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            taken, waited = time.perf_counter() - self.since, _loader(trainer).waited - self.waited
            module.log_dict(
                {"speed/images_per_second": self.images / taken, "speed/data_wait": waited / taken}
            )
            self._restart(trainer)


def _loader(trainer: L.Trainer) -> Loader:
    assert isinstance(trainer.train_dataloader, Loader)
    return trainer.train_dataloader


class Progress(L.Callback):
    """A progress bar on a terminal; in the log file, and on any other output, a line every `seconds`."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.bar: Bar | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.begun = self.last = time.monotonic()
        self.first = trainer.global_step
        self.total = int(trainer.estimated_stepping_batches)
        if trainer.is_global_zero and sys.stdout.isatty():
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                transient=True,
            )
            self.task = self.bar.add_task(
                "training", total=self.total, completed=self.first, numbers=""
            )
            self.bar.start()
            self._console().setStream(sys.stdout)  # rich's, which writes above the bar
            self._console().addFilter(_no_step)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not trainer.is_global_zero:
            return
        now = time.monotonic()
        if self.bar:
            where = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar.update(self.task, completed=trainer.global_step, description=where)
        if now - self.last < self.seconds:
            return
        self.last = now
        done = trainer.global_step - self.first
        left = timedelta(
            seconds=round((now - self.begun) / done * (self.total - trainer.global_step))
        )
        numbers = self._numbers(trainer)
        if self.bar:
            self.bar.update(self.task, numbers=numbers)
        where = f"epoch {trainer.current_epoch + 1} step {trainer.global_step}/{self.total}"
        log.info("%s  %s  ETA %s", where, numbers, left, extra={"step": True})

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            errors = trainer.callback_metrics
            log.info(
                "epoch %d  validation: top-1 error %.2f %%, top-5 error %.2f %%, loss %.4f",
                trainer.current_epoch + 1,
                100 * errors["val/top1_error"],
                100 * errors["val/top5_error"],
                errors["val/loss"],
            )

    @staticmethod
    def _numbers(trainer: L.Trainer) -> str:
        values = trainer.callback_metrics
        text = f"loss {float(values['train/loss']):.4f}" if "train/loss" in values else ""
        if "speed/images_per_second" in values:
            speed, wait = float(values["speed/images_per_second"]), float(values["speed/data_wait"])
            text += f"  {speed:,.0f} images/s, {wait:.1%} waiting for data"
        return text

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
            self._console().setStream(sys.stdout)
            self._console().removeFilter(_no_step)

    @staticmethod
    def _console() -> logging.StreamHandler:
        return next(
            handler for handler in logging.root.handlers if type(handler) is logging.StreamHandler
        )


def _no_step(record: logging.LogRecord) -> bool:
    """Keeps the lines that the bar shows off the terminal; the log file has them."""
    return not hasattr(record, "step")


class StuckLoss(L.Callback):
    """Says what to do when the loss does not leave ln(classes), that of guessing, and logs how long it took as
    `train/images_until_learning`, in images.

    Arguments:
        images: after so many with a loss within 1 % of ln(classes), one line names the remedies.
        stop: ends the run once the loss is more than 1 % lower; for measuring (`sweep=claims/stuck_loss`).
    """

    def __init__(self, images: int, stop: bool):
        self.images, self.stop = images, stop
        self.seen = self.flat = self.left = self.steps = 0
        self.total: float | torch.Tensor = 0.0  # of the losses of so many steps
        self.warned = False

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(module, Classifier)
        self.seen += trainer.datamodule.batch_size  # type: ignore[attr-defined]
        if self.left:
            return
        self.total += outputs[
            "loss"
        ].detach()  # read only every STEPS steps, since reading waits for the device
        self.steps += 1
        if self.steps < STEPS:
            return
        ratio = float(self.total) / STEPS / math.log(len(module.classes))
        self.total, self.steps = 0.0, 0
        images = STEPS * trainer.datamodule.batch_size  # type: ignore[attr-defined]
        self.flat = self.flat + images if abs(ratio - 1) <= 0.01 else 0
        if ratio < 0.99:
            self.left = self.seen
            trainer.should_stop = self.stop
        elif self.flat >= self.images and not self.warned and trainer.is_global_zero:
            self.warned = True
            log.warning(
                "the loss has stayed within 1 %% of ln(%d) = %.2f for %d images: try model.init=authors or "
                "kaiming, another optimizer.lr (now %g) or seed; see in the contact sheet that labels are right",
                len(module.classes),
                math.log(len(module.classes)),
                self.flat,
                trainer.optimizers[0].param_groups[0]["lr"],
            )

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.left:
            module.log("train/images_until_learning", float(self.left))

    def state_dict(self) -> dict[str, Any]:
        names = ("seen", "flat", "left", "steps", "warned")
        return {name: getattr(self, name) for name in names} | {"total": float(self.total)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


class SaveBest(ModelCheckpoint):
    """Lightning's, which by itself forgets the best error of a run whose folder was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def moved(path: str) -> str:
            return path.replace(state_dict["dirpath"], str(self.dirpath))

        here = {
            key: moved(value) if isinstance(value, str) else value
            for key, value in state_dict.items()
        }
        here["best_k_models"] = {
            moved(path): score for path, score in state_dict["best_k_models"].items()
        }
        super().load_state_dict(here)


class Figures(L.Callback):
    """TensorBoard images after each epoch: conv1's kernels by tower (Fig. 3) and eight validation images with their
    five likeliest classes (Fig. 4 left)."""

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        from alexnet.training import figures

        assert isinstance(module, Classifier)
        if not trainer.loggers:
            return
        data: StoreData = trainer.datamodule  # type: ignore[attr-defined]
        shown, labels, _ = figures.sample(data.store.splits["val"], 8)
        # By every rank, since the net may be spread over them; not compiled once more for eight images.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            images = trainer.precision_plugin.convert_input(
                data.augment.center(shown.to(module.device))
            )
            probabilities = module.net(images).float().softmax(1).cpu()
            kernels = dict(module.net.named_parameters()).get("conv1.weight")
            if isinstance(kernels, DTensor):
                kernels = kernels.full_tensor()
        if not trainer.is_global_zero:
            return
        board = trainer.logger.experiment  # type: ignore[union-attr]
        step = (
            trainer.global_step - 1
        )  # counted as in Lightning's scalars; a resumed run forgets what comes after it
        if kernels is not None:
            towers = getattr(module.net, "towers", 1)
            board.add_image(
                "conv1/kernels", figures.kernels(kernels.detach().float().cpu(), towers), step
            )
        figure = figures.predictions(shown, labels, probabilities, data.store.names)
        board.add_figure("validation/predictions", figure, step)
