"""Lightning's Trainer with the options that this project's users set."""

from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

Share = Annotated[float, Interval(gt=0, le=1)]
Precision = Literal[
    "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "transformer-engine"
]
FIXED: dict[str, Any] = {
    "num_sanity_val_steps": 0,
    "inference_mode": False,  # FSDP's parameters could not be trained after it
    "use_distributed_sampler": False,  # the loader shards by itself
    "enable_progress_bar": False,  # a callback shows one
    "enable_model_summary": False,
}


def build_trainer(
    *,
    accelerator: Literal["auto", "cpu", "gpu", "cuda"],
    devices: PositiveInt,
    num_nodes: PositiveInt,
    precision: Precision,
    max_epochs: PositiveInt,
    max_steps: Literal[-1] | PositiveInt,
    limit_train_batches: PositiveInt | Share | None,
    limit_val_batches: NonNegativeInt | Share | None,
    log_every_n_steps: PositiveInt,
    gradient_clip_val: PositiveFloat | None,
    gradient_clip_algorithm: Literal["norm", "value"],
    accumulate_grad_batches: PositiveInt,
    deterministic: bool,
    **others: Any,
) -> Any:
    """A `lightning.Trainer`.

    Arguments:
        accelerator: `auto` is a CUDA GPU if there is one, else the CPU. Lightning's own `auto`
            would take an Apple GPU, which can't sum in float64.
        devices, num_nodes: devices of each machine, and machines.
        limit_train_batches, limit_val_batches: batches of an epoch, or a share of them.
        others: further options of `lightning.Trainer`, such as its strategy and callbacks.
    """
    # Takes seconds to import; the options are checked against this signature before.
    from lightning import Trainer

    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        max_epochs=max_epochs,
        max_steps=max_steps,
        limit_train_batches=limit_train_batches,
        limit_val_batches=limit_val_batches,
        log_every_n_steps=log_every_n_steps,
        gradient_clip_val=gradient_clip_val,
        gradient_clip_algorithm=gradient_clip_algorithm,
        accumulate_grad_batches=accumulate_grad_batches,
        deterministic=deterministic,
        **(FIXED | others),
    )
