"""The LightningModule: what one training step and one validation step are."""

import copy
import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from alexnet import rng
from alexnet.data.datamodule import Batch
from alexnet.nets.layers import Dropout
from alexnet.parallel.strategies import DataParallel
from alexnet.parallel.tensor_parallel import clip_gradient_norm
from alexnet.training.metrics import Errors


class Classifier(L.LightningModule):
    """Trains `net` by softmax regression and counts its errors.

    Arguments:
        net: images to logits.
        classes: names, one for each output.
        optimizer: builds the optimizer from the net.
        schedule: builds Lightning's scheduler entry from the optimizer and the steps of the run and of an epoch.
        form: how the net spreads over devices.
        seed: of dropout, with the step and the images' ids, so that every number of devices and a resumed run agree.
        config: the run's whole configuration, kept in every checkpoint as plain values.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: list[str],
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer, int, int], dict[str, Any]],
        form: DataParallel,
        seed: int,
        config: dict[str, Any],
    ):
        super().__init__()
        self.net, self.classes, self.seed, self.config = net, classes, seed, config
        self.build_optimizer, self.build_schedule, self.form = optimizer, schedule, form
        self.is_split = False
        self.train_errors, self.val_errors = Errors(len(classes)), Errors(len(classes))
        self.val_counts: dict[str, int] = {}
        self.counted: dict[str, Tensor] = {}  # of an epoch that was broken off

    def configure_model(self) -> None:  # Lightning calls it before each of fit, validate and test
        if self.device_mesh is None or self.is_split:
            return
        self.net.to(self.trainer.strategy.root_device).to(
            memory_format=torch.contiguous_format
        )  # as FSDP needs it
        group = self.form.split(self.net, self.device_mesh)
        self.train_errors.process_group = self.val_errors.process_group = group
        self.is_split = True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels, weights, ids = batch
        keys = self.form.rows(rng.make_keys(self.seed, self.global_step, ids), self.device_mesh)
        for layer in self.net.modules():
            if isinstance(layer, Dropout):
                layer.keys = keys
        logits = self.net(images)
        losses = F.cross_entropy(logits, labels, reduction="none")
        self.train_errors.update(logits, labels, weights, losses.detach())
        loss = losses.mean()
        # Only when it is written, since each call takes half a ms; not on the bar, for which Lightning reads it back.
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss, sync_dist=True)
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        if (
            gradient_clip_val
            and gradient_clip_algorithm != "value"
            and self.device_mesh is not None
        ):
            clip_gradient_norm(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_epoch_end(self) -> None:
        self._log_errors("train", self.train_errors)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels, weights, _ = batch
        logits = self.net(images)
        self.val_errors.update(
            logits, labels, weights, F.cross_entropy(logits, labels, reduction="none")
        )

    def on_validation_epoch_end(self) -> None:
        with self.val_errors.sync_context():
            self.val_counts = self.val_errors.counts()
        errors = self._log_errors("val", self.val_errors)
        rule = self.lr_schedulers()
        if isinstance(rule, ReduceLROnPlateau) and not self.trainer.sanity_checking:
            rule.step(errors["top1_error"])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning would step the plateau rule after the checkpoint is written, and a resumed run would miss it."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def _log_errors(self, stage: str, errors: Errors) -> dict[str, Tensor]:
        values = errors.compute()  # summed over ranks by torchmetrics
        loss = {
            f"{stage}/epoch_loss" if stage == "train" else f"{stage}/loss": values.pop(
                "loss"
            ).float()
        }
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()} | loss)
        errors.reset()
        return values

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer(self.net)
        total_steps = int(self.trainer.estimated_stepping_batches)
        epoch_steps = math.ceil(
            self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        )
        schedule = self.build_schedule(optimizer, total_steps, epoch_steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"], checkpoint["classes"] = self.config, self.classes
        with self.train_errors.sync_context():
            checkpoint["train_errors"] = copy.deepcopy(self.train_errors.metric_state)
        if self.device_mesh is not None:
            return
        optimizer = checkpoint["optimizer_states"][0]
        self._number_by_position(optimizer)
        # Ordinary strides: the model-parallel strategy sends a tensor's memory as it lies.
        for tensors in (checkpoint["state_dict"], *optimizer["state"].values()):
            tensors.update({name: value.contiguous() for name, value in tensors.items()})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.counted = checkpoint["train_errors"]

    def on_train_start(self) -> None:
        """Goes on within an epoch: the loader at the next batch, the first process's counts from the sums of all."""
        loader: Any = self.trainer.train_dataloader
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        # Lightning loads it only if nothing asked for the run's length before.
        loader.load_state_dict(
            {"position": batches.processed % int(self.trainer.num_training_batches)}
        )
        group = self.train_errors.process_group
        if self.counted and (not dist.is_initialized() or dist.get_rank(group) == 0):
            for name, value in self.counted.items():
                setattr(self.train_errors, name, value.to(self.device))
            self.counted = {}

    def _number_by_position(self, state: dict[str, Any]) -> None:
        """Renumbers an optimizer's state from the order of its groups to that of the parameters, in which Lightning's
        model-parallel strategy reads and writes it; then one file fits every form."""
        position = {parameter: i for i, parameter in enumerate(self.parameters())}
        number: dict[int, int] = {}
        for saved, group in zip(state["param_groups"], self.optimizers().param_groups, strict=True):  # type: ignore[union-attr]
            places = [position[parameter] for parameter in group["params"]]
            number |= dict(zip(saved["params"], places, strict=True))
            saved["params"] = places
        state["state"] = {
            number[i]: dict(value) for i, value in state["state"].items()
        }  # not the optimizer's own
