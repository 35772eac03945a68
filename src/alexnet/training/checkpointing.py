"""What lets a run go on after any end: whole checkpoints, written often enough, and at a signal."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO

log = logging.getLogger(__name__)


class AtomicIO(TorchCheckpointIO):
    """A checkpoint appears under its name when all of it lies on the disk. Lightning's own is gathered in the folder
    for temporary files, and copied from there if that is another disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".unfinished")
        with unfinished.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


class SaveLast(Checkpoint):
    """Writes last.ckpt after every epoch, every `minutes` within one, and at SIGTERM or SIGUSR1, which end the run; the
    one before stays as previous.ckpt. Under SLURM, SIGUSR1 (`sbatch --signal=USR1@120`) also queues the job again.

    Several devices ask each other at the logging interval whether one is due, so that all write at the same step.
    """

    def __init__(self, dirpath: str, minutes: float):
        self.file, self.minutes = Path(dirpath) / "last.ckpt", minutes
        self.signal = self.ending = 0
        self.written = False
        self.next = self.file.with_name("next.ckpt")  # until its numbers stand in the event file

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.saved = time.monotonic()
        for number in (
            signal.SIGTERM,
            signal.SIGUSR1,
        ):  # Lightning's handlers exit with code 0 and save nothing
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        done = batch_idx + 1
        alone = trainer.world_size == 1
        if done == trainer.num_training_batches or done % trainer.accumulate_grad_batches:
            return  # soon saved with the epoch's validation; or in the middle of a step
        if not alone and done // trainer.accumulate_grad_batches % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        wanted = [self.signal, int(time.monotonic() - self.saved >= 60 * self.minutes)]
        number, due = wanted if alone else _greatest(wanted, module.device)
        if number or due:
            self._save(trainer)
        self.ending = number

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._publish(
            trainer
        )  # only here, since the numbers of a step, and of an epoch, are logged after its end
        if self.ending:
            self._end(trainer, self.ending)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._publish(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.next, weights_only=False)
        self.saved, self.written = time.monotonic(), True

    def _publish(self, trainer: L.Trainer) -> None:
        if not self.written or not trainer.is_global_zero:
            return
        if self.file.exists():
            self.file.replace(self.file.with_name("previous.ckpt"))
        self.next.replace(self.file)
        self.written = False

    def _end(self, trainer: L.Trainer, number: int) -> None:
        if not trainer.is_global_zero:
            sys.exit(
                0
            )  # Lightning would kill the first process, which still has work to do, for any other code
        folder = self.file.parents[1]
        log.info(
            "%s after step %d: resume=%s goes on",
            signal.Signals(number).name,
            trainer.global_step,
            folder,
        )
        if number == signal.SIGUSR1 and (job := os.environ.get("SLURM_JOB_ID")):
            subprocess.run(["scontrol", "requeue", job])
        sys.exit(128 + number)


def _greatest(values: list[int], device: torch.device) -> list[int]:
    """Each value's greatest over all processes."""
    tensor = torch.tensor(values, device=device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return tensor.tolist()
