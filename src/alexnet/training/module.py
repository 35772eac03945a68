"""The LightningModule: what one training step and one validation step are."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import keyed
from alexnet.data.datamodule import Images
from alexnet.nets.layers import Dropout
from alexnet.parallel.forms import DataParallel
from alexnet.training.metrics import Errors


class Classifier(L.LightningModule):
    """Trains `net` by softmax regression and counts its errors.

    Arguments:
        net: pictures to logits.
        classes: names, one for each output.
        optimizer: builds the optimiser from the net.
        schedule: builds Lightning's scheduler entry from the optimiser and the number of steps.
        form: how the net spreads over devices.
        seed: of dropout, with the step and the pictures' ids, so that every number of devices and a resumed run agree.
        config: the run's whole configuration, kept in every checkpoint as plain values.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: list[str],
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer, int], dict[str, Any]],
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

    def configure_model(self) -> None:  # Lightning calls it before each of fit, validate and test
        if self.device_mesh is None or self.is_split:
            return
        self.net.to(self.trainer.strategy.root_device).to(memory_format=torch.contiguous_format)  # as FSDP needs it
        group = self.form.split(self.net, self.device_mesh)
        self.train_errors.process_group = self.val_errors.process_group = group
        self.is_split = True

    def training_step(self, batch: Images, batch_idx: int) -> Tensor:
        images, labels, weights, ids = batch
        keys = self.form.rows(keyed.keys(self.seed, self.global_step, ids), self.device_mesh)
        for layer in self.net.modules():
            if isinstance(layer, Dropout):
                layer.keys = keys
        logits = self.net(images)
        losses = F.cross_entropy(logits, labels, reduction="none")
        self.train_errors.update(logits, labels, weights, losses.detach())
        loss = losses.mean()
        self.log("train/loss", loss, sync_dist=True)  # not on the progress bar, for which Lightning reads it back
        return loss

    def on_train_epoch_end(self) -> None:
        self._log_errors("train", self.train_errors)

    def validation_step(self, batch: Images, batch_idx: int) -> None:
        images, labels, weights, _ = batch
        logits = self.net(images)
        self.val_errors.update(logits, labels, weights, F.cross_entropy(logits, labels, reduction="none"))

    def on_validation_epoch_end(self) -> None:
        with self.val_errors.sync_context():
            self.val_counts = self.val_errors.counts()
        self._log_errors("val", self.val_errors)

    def _log_errors(self, stage: str, errors: Errors) -> None:
        values = errors.compute()  # summed over ranks by torchmetrics
        loss = {f"{stage}/epoch_loss" if stage == "train" else f"{stage}/loss": values.pop("loss").float()}
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()} | loss)
        errors.reset()

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer(self.net)
        total_steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": self.build_schedule(optimizer, total_steps)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"], checkpoint["classes"] = self.config, self.classes
        if self.device_mesh is not None:
            return
        optimizer = checkpoint["optimizer_states"][0]
        self._number_by_position(optimizer)
        # Ordinary strides: the model-parallel strategy sends a tensor's memory as it lies.
        for tensors in (checkpoint["state_dict"], *optimizer["state"].values()):
            tensors.update({name: value.contiguous() for name, value in tensors.items()})

    def _number_by_position(self, state: dict[str, Any]) -> None:
        """Renumbers an optimiser's state from the order of its groups to that of the parameters, in which Lightning's
        model-parallel strategy reads and writes it; then one file fits every form."""
        position = {parameter: i for i, parameter in enumerate(self.parameters())}
        number: dict[int, int] = {}
        for saved, group in zip(state["param_groups"], self.optimizers().param_groups, strict=True):  # type: ignore[union-attr]
            places = [position[parameter] for parameter in group["params"]]
            number |= dict(zip(saved["params"], places, strict=True))
            saved["params"] = places
        state["state"] = {number[i]: dict(value) for i, value in state["state"].items()}  # not the optimiser's own
