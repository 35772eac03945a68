"""Checkpoints: what they hold, when they are written, and how a run resumes from one.

A run resumes with the next batch and equals the uninterrupted run, however it was stopped. Its
folder holds

    next.ckpt      just written; its step's or epoch's numbers are not in the event file yet
    last.ckpt      the newest published checkpoint, from which the run resumes
    previous.ckpt  the one published before it, in case last.ckpt is corrupt
    best.ckpt      the epoch with the least validation error

`SaveLast` writes next.ckpt after every epoch, every few minutes within one and at a signal, and
publishes it as last.ckpt when the next batch starts or training ends. By then Lightning has logged
the numbers of that step or epoch. Had the run died in between, a resumed run would not log them
again, and the curves would have a hole. A next.ckpt that was not published is ignored.

Every checkpoint fits every parallel strategy: tensors are whole and optimizer state is numbered by
the network's parameters. It also holds the counts of the epoch that it interrupts.
"""

import copy
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import TorchCheckpointIO
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from alexnet.errors import UserError, join_problems
from alexnet.training.metrics import Errors
from alexnet.training.trainer_parts import get_log_interval, get_train_loader

log = logging.getLogger(__name__)
Contents = dict[str, Any]  # of a checkpoint file


# Reading ------------------------------------------------------------------------------------------


def read_checkpoint(file: Path) -> Contents:
    """Lightning's checkpoint. Raises UserError if the file is corrupt."""
    try:
        return cast(Contents, torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # torch has no type of its own for it
        reason = str(error).split("\n")[0]
        raise UserError(f"checkpoint {file} is corrupt or incomplete: {reason}") from error


def count_finished_epochs(checkpoint: Contents) -> int:
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def select_weights(net: nn.Module, checkpoint: Contents) -> dict[str, Tensor]:
    """The state dict of `net` in a checkpoint. Raises UserError if it is another network's."""
    weights = _extract_weights(checkpoint)
    expected = net.state_dict()
    problems = _compare_shapes(weights, expected, {**expected, **weights})
    if problems:
        raise UserError(f"the checkpoint is of another network: {join_problems(problems, 3)}")
    return weights


def load_initial_weights(net: nn.Module, file: Path, layers: Sequence[str] | None) -> None:
    """Copies `layers`, all if None, from another run's checkpoint into `net`.

    Raises UserError if the network or the checkpoint lacks one, or has another shape.
    """
    saved = _extract_weights(read_checkpoint(file))
    expected = net.state_dict()
    wanted = [name for name in expected if layers is None or name.split(".")[0] in layers]
    problems = _compare_shapes(saved, expected, wanted)
    for layer in layers or []:
        if not any(name.startswith(f"{layer}.") for name in wanted):
            problems.append(f"the network has no weights of {layer}")
    if problems:
        raise UserError(
            f"start.run={file.parent.parent} does not fit: {join_problems(problems, 3)}; "
            "choose the layers to copy by start.layers"
        )
    # Not strict: the layers that were not chosen keep their own initial weights.
    net.load_state_dict({name: saved[name] for name in wanted}, strict=False)


def _extract_weights(checkpoint: Contents) -> dict[str, Tensor]:
    state: Mapping[str, Tensor] = checkpoint["state_dict"]
    prefix = "net."  # `Classifier.net`
    return {name[len(prefix) :]: x for name, x in state.items() if name.startswith(prefix)}


def _compare_shapes(
    saved: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: Iterable[str]
) -> list[str]:
    """Which of the named weights differ between a checkpoint and the network, and how."""
    problems = []
    for name in names:
        saved_shape = tuple(saved[name].shape) if name in saved else "missing"
        shape = tuple(expected[name].shape) if name in expected else "missing"
        if saved_shape != shape:
            problems.append(f"{name} is {saved_shape} in the checkpoint, {shape} in the network")
    return problems


# What `Classifier` adds to a checkpoint, and what it restores -------------------------------------


def make_portable(checkpoint: Contents, module: L.LightningModule) -> None:
    """Brings an unsharded run's checkpoint into the form that every parallel strategy reads.

    Lightning's model-parallel strategy, which writes this form by itself, numbers the optimizer's
    state by the order of the module's parameters, not of the optimizer's groups; and it sends a
    tensor's memory as it lies, so tensors are stored contiguous.
    """
    optimizer = module.optimizers()
    assert isinstance(optimizer, LightningOptimizer)
    state = checkpoint["optimizer_states"][0]
    _renumber_parameters(state, optimizer, list(module.parameters()))
    for tensors in (checkpoint["state_dict"], *state["state"].values()):
        for name, tensor in tensors.items():
            tensors[name] = tensor.contiguous()


def _renumber_parameters(
    state: Contents, optimizer: LightningOptimizer, parameters: list[nn.Parameter]
) -> None:
    """Numbers an optimizer's saved state by the places of its parameters in `parameters`."""
    places = {parameter: place for place, parameter in enumerate(parameters)}
    new_numbers: dict[int, int] = {}
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        numbers = [places[parameter] for parameter in group["params"]]
        new_numbers |= dict(zip(saved["params"], numbers, strict=True))
        saved["params"] = numbers
    # Copies, since the inner dicts are the running optimizer's own.
    state["state"] = {new_numbers[old]: dict(entry) for old, entry in state["state"].items()}


def copy_counts(errors: Errors) -> dict[str, Tensor]:
    """What all processes have counted so far in this epoch."""
    with errors.sync_context():  # copied, since the states are the process's own again after it
        return cast(dict[str, Tensor], copy.deepcopy(errors.metric_state))


def restore_counts(errors: Errors, counts: Mapping[str, Tensor]) -> None:
    """Resumes an epoch's counts: the first process takes the sums of all."""
    if dist.is_initialized() and dist.get_rank(errors.process_group) > 0:
        return
    for name, value in counts.items():
        setattr(errors, name, value.to(errors.device))


def set_loader_position(trainer: L.Trainer) -> None:
    """Lets the first epoch start with the batch after the last one that was trained on.

    Lightning restores a loader's state only if nothing has asked for the run's length before, which
    the schedules do. Its own count of the epoch's batches is a private attribute.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress.current.state_dict()
    position = progress["processed"] % int(trainer.num_training_batches)
    get_train_loader(trainer).load_state_dict({"position": position})


# Writing ------------------------------------------------------------------------------------------


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint appears under its name when all of it is on the disk.

    Lightning's own is written to the folder for temporary files and, where that is another disk,
    copied from there.
    """

    def save_checkpoint(
        self, checkpoint: Contents, path: str | Path, storage_options: object = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        with unfinished.open("wb") as file:
            torch.save(checkpoint, file)
            # To the disk before the file gets its name, in case the machine fails.
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


class State(Enum):
    """Of `SaveLast`: TRAINING → SAVED → TRAINING → …, and at last, after a signal, → STOPPING."""

    TRAINING = auto()  # there is no next.ckpt
    SAVED = auto()  # next.ckpt is to be published
    STOPPING = auto()  # next.ckpt is to be published, and then the run stops


class SaveLast(Checkpoint):
    """Saves last.ckpt after every epoch, every `minutes` within one, and at SIGTERM or SIGUSR1.

    A signal stops the run. Under SLURM, SIGUSR1 (`sbatch --signal=USR1@120`) also requeues the job.
    The checkpoint before last.ckpt stays as previous.ckpt.

    Several processes ask each other every `trainer.log_every_n_steps` whether one of them wants to
    save, so that all save after the same step.
    """

    def __init__(self, dirpath: str, minutes: NonNegativeFloat):
        folder = Path(dirpath)
        self.next = folder / "next.ckpt"
        self.last = folder / "last.ckpt"
        self.previous = folder / "previous.ckpt"
        self.minutes = minutes
        self.state = State.TRAINING
        self.signal = 0  # received by this process, or agreed on with the others; 0: none
        self.saved_at = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.saved_at = time.monotonic()
        # Instead of Lightning's handlers, which exit with code 0 and save nothing.
        signal.signal(signal.SIGTERM, self._receive_signal)
        signal.signal(signal.SIGUSR1, self._receive_signal)

    def _receive_signal(self, number: int, frame: FrameType | None) -> None:
        if self.state is not State.STOPPING:
            self.signal = number

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if not self._is_time_to_ask(trainer, batch_idx + 1):
            return
        is_due = time.monotonic() - self.saved_at >= 60 * self.minutes
        number, any_due = _find_greatest([self.signal, int(is_due)], trainer, module.device)
        if number:
            self._save(trainer, State.STOPPING)
            self.signal = number
        elif any_due:
            self._save(trainer, State.SAVED)

    def _is_time_to_ask(self, trainer: L.Trainer, batches: int) -> bool:
        """Whether a checkpoint may be saved after so many batches of the epoch."""
        if batches == trainer.num_training_batches:
            return False  # the epoch saves one at its end, after its validation
        if batches % trainer.accumulate_grad_batches:
            return False  # gradients of a part of a step are not saved
        if trainer.world_size == 1:
            return True  # no other process has to be asked
        steps = batches // trainer.accumulate_grad_batches
        return steps % get_log_interval(trainer) == 0

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer, State.SAVED)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        # The numbers of the step, or of the epoch, before this batch have been logged by now.
        self._publish(trainer)
        if self.state is State.STOPPING:
            self._stop(trainer)
        self.state = State.TRAINING

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._publish(trainer)
        self.state = State.TRAINING

    def _save(self, trainer: L.Trainer, state: State) -> None:
        trainer.save_checkpoint(self.next, weights_only=False)
        self.saved_at = time.monotonic()
        self.state = state

    def _publish(self, trainer: L.Trainer) -> None:
        if self.state is State.TRAINING or not trainer.is_global_zero:
            return
        if self.last.exists():
            self.last.replace(self.previous)
        self.next.replace(self.last)

    def _stop(self, trainer: L.Trainer) -> NoReturn:
        if not trainer.is_global_zero:
            # For any other code Lightning would kill the first process before it is done.
            sys.exit(0)
        log.info(
            "%s after step %d: resume=%s continues the run",
            signal.Signals(self.signal).name,
            trainer.global_step,
            self.last.parents[1],
        )
        # The requeued job runs the same command, which resumes if it has resume=auto.
        job = os.environ.get("SLURM_JOB_ID")
        if self.signal == signal.SIGUSR1 and job:
            subprocess.run(["scontrol", "requeue", job])
        sys.exit(128 + self.signal)  # as a shell reports a process that a signal ended


def _find_greatest(
    values: Sequence[int], trainer: L.Trainer, device: torch.device
) -> Sequence[int]:
    """Each value's greatest over all processes."""
    if trainer.world_size == 1:
        return values
    tensor = torch.tensor(values, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


class SaveBest(ModelCheckpoint):
    """Lightning's, which forgets the best error of a run whose folder was moved."""

    def load_state_dict(self, state_dict: Contents) -> None:
        saved_folder: str = state_dict["dirpath"]
        folder = str(self.dirpath)
        # Lightning restores the state only if `dirpath` is the same.
        state = dict(state_dict)
        for key in ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = state[key].replace(saved_folder, folder)
        state["best_k_models"] = {
            path.replace(saved_folder, folder): error
            for path, error in state_dict["best_k_models"].items()
        }
        super().load_state_dict(state)
