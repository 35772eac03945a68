"""The LightningModule: what one training step and one validation step are."""

import math
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import (
    LRSchedulerConfigType,
    LRSchedulerTypeUnion,
    OptimizerLRScheduler,
)
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from alexnet import rng
from alexnet.data.datamodule import Batch
from alexnet.nets.layers import Dropout
from alexnet.parallel.strategies import ParallelStrategy
from alexnet.parallel.tensor_parallel import clip_gradient_norm
from alexnet.training.checkpointing import (
    copy_counts,
    make_portable,
    restore_counts,
    set_loader_position,
)
from alexnet.training.metrics import Errors
from alexnet.training.schedules import SchedulerConfig
from alexnet.training.trainer_parts import get_log_interval


class Classifier(L.LightningModule):
    """Trains `net` by softmax regression and counts its errors.

    Arguments:
        net: images to logits.
        classes: names, one for each output.
        optimizer: builds the optimizer from the net.
        schedule: builds Lightning's scheduler configuration from the optimizer and the number of
            steps of the run and of an epoch.
        parallel: how the net is spread over devices.
        seed: of dropout, together with the step and the images' ids, so that the numbers are the
            same on any number of devices and in a resumed run.
        config: the run's whole configuration as plain values, kept in every checkpoint.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        classes: list[str],
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Callable[[Optimizer, int, int], SchedulerConfig],
        parallel: ParallelStrategy,
        seed: int,
        config: dict[str, Any],
    ):
        super().__init__()
        self.net = net
        self.classes = classes
        self.build_optimizer = optimizer
        self.build_schedule = schedule
        self.parallel = parallel
        self.is_parallelized = False
        self.seed = seed
        self.config = config
        self.train_errors = Errors(len(classes))
        self.val_errors = Errors(len(classes))
        self.val_counts: dict[str, int] = {}
        self.interrupted_counts: dict[str, Tensor] = {}  # of the epoch that a checkpoint interrupts

    def configure_model(self) -> None:
        """Spreads the net; Lightning calls it before each of fit, validate and test."""
        if self.device_mesh is None or self.is_parallelized:
            return
        self.net.to(self.trainer.strategy.root_device)
        self.net.to(memory_format=torch.contiguous_format)  # FSDP can't shard channels-last
        counting_group = self.parallel.parallelize(self.net, self.device_mesh)
        self.train_errors.process_group = counting_group
        self.val_errors.process_group = counting_group
        self.is_parallelized = True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # §4.2: the units that are dropped depend on the image and the step, not on the device.
        keys = rng.make_keys(self.seed, self.global_step, batch.ids)
        set_dropout_keys(self.net, self.parallel.gather_keys(keys, self.device_mesh))
        logits = self.net(batch.images)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        self.train_errors.update(logits, batch.labels, batch.weights, losses.detach())
        loss = losses.mean()
        # Only on logging steps: self.log costs half a millisecond, and a progress bar would read
        # the loss back from the device at every step.
        if (self.global_step + 1) % get_log_interval(self.trainer) == 0:
            self.log("train/loss", loss, sync_dist=True)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # torch has no norm of gradients that are sharded over several meshes.
        by_norm = gradient_clip_algorithm != "value"
        if gradient_clip_val and by_norm and self.device_mesh is not None:
            clip_gradient_norm(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_epoch_end(self) -> None:
        errors = self.train_errors.compute()  # summed over processes by torchmetrics
        self._log_errors(errors, "train", loss_tag="train/epoch_loss")
        self.train_errors.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.net(batch.images)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        self.val_errors.update(logits, batch.labels, batch.weights, losses)

    def on_validation_epoch_end(self) -> None:
        # Within the context the states are sums over processes; `compute` enters it by itself.
        with self.val_errors.sync_context():
            self.val_counts = self.val_errors.read_counts()
        errors = self.val_errors.compute()
        self._log_errors(errors, "val", loss_tag="val/loss")
        self.val_errors.reset()
        # Here and not by Lightning: see lr_scheduler_step.
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau) and not self.trainer.sanity_checking:
            scheduler.step(errors["top1_error"])

    def lr_scheduler_step(self, scheduler: LRSchedulerTypeUnion, metric: Any) -> None:
        """Lightning would step the plateau rule after the checkpoint has been written.

        A resumed run would then miss that step.
        """
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def _log_errors(self, errors: dict[str, Tensor], stage: str, loss_tag: str) -> None:
        values = {f"{stage}/{name}": x for name, x in errors.items() if name != "loss"}
        values[loss_tag] = errors["loss"].float()
        self.log_dict(values)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.build_optimizer(self.net)
        total_steps = int(self.trainer.estimated_stepping_batches)  # first: it sets up the data
        epoch_batches = self.trainer.num_training_batches
        epoch_steps = math.ceil(epoch_batches / self.trainer.accumulate_grad_batches)
        schedule = self.build_schedule(optimizer, total_steps, epoch_steps)
        return {"optimizer": optimizer, "lr_scheduler": cast(LRSchedulerConfigType, schedule)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        checkpoint["classes"] = self.classes
        checkpoint["train_errors"] = copy_counts(self.train_errors)
        if self.device_mesh is None:  # with a mesh, Lightning's strategy has done it
            make_portable(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.interrupted_counts = checkpoint["train_errors"]

    def on_train_start(self) -> None:
        # Later than on_load_checkpoint: now there is a loader, and the states are on the device.
        set_loader_position(self.trainer)
        restore_counts(self.train_errors, self.interrupted_counts)
        self.interrupted_counts = {}


def set_dropout_keys(net: nn.Module, keys: Tensor) -> None:
    """Lets each image's key decide which units are dropped in the next forward pass."""
    for layer in net.modules():
        if isinstance(layer, Dropout):
            layer.keys = keys
