"""Training steps by themselves: train.py's configuration, network and step, without loop and data.

The benchmarks step, lrn, augment, evaluate and end_to_end share them.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from alexnet import rng
from alexnet.benchmarks.candidate import Cost
from alexnet.benchmarks.ceilings import wait_for_device
from alexnet.benchmarks.traffic import (
    count_compiled_bytes,
    count_eager_bytes,
    count_first_layer_flop,
    count_forward_flop,
)
from alexnet.devices import choose_device
from alexnet.nets.layers import compile_network
from alexnet.options import build_object
from alexnet.training.module import set_dropout_keys
from alexnet.training.train import build_network

CLASSES = 1000
# Callbacks that save, validate or print; a benchmark does without.
UNUSED_CALLBACKS = ("best", "last", "figures", "progress")
Mode = Literal["eager", "compiled", "graphs"]  # graphs: compiled to CUDA graphs


def compose_training_config(config: DictConfig) -> DictConfig:
    """train.py's configuration with the benchmark's options: training without end or validation."""
    options = {
        "model": config.net,
        "model.num_classes": CLASSES,
        "data.folder": config.folder,
        "data.make": "null",
        "data.batch_size": config.batch_size,
        "schedule": "steps",
        "compile": config.compile,
        "fused": config.fused,
        "trainer.precision": config.precision,
        "trainer.max_epochs": 1_000_000,
        "trainer.limit_val_batches": 0,
        "+trainer.enable_checkpointing": "false",
    }
    overrides = [f"{option}={value}" for option, value in options.items()]
    overrides += [f"~callbacks.{name}" for name in UNUSED_CALLBACKS]
    return compose("train", overrides)


def choose_dtype(training: DictConfig) -> torch.dtype:
    """The precision in which convolutions and matrix products are computed."""
    mixed = training.trainer.precision == "bf16-mixed"
    return torch.bfloat16 if mixed else torch.float32


def build_eager_network(training: DictConfig, *, fused: bool) -> nn.Module:
    """train.py's network, not compiled."""
    options = OmegaConf.merge(training, {"fused": fused, "compile": False})
    return build_network(DictConfig(options))


class TrainingSteps:
    """Steps as train.py takes them: forward, loss, backward and update, on one batch.

    Called, it takes steps for long enough to be measured and returns the number of images.
    """

    def __init__(self, net: nn.Module, training: DictConfig, mode: Mode):
        self.device = choose_device("auto")
        self.dtype = choose_dtype(training)
        self.net = net.to(self.device).to(memory_format=torch.channels_last)
        self.optimizer: torch.optim.Optimizer = build_object(training.optimizer)(self.net)
        batch_size = training.data.batch_size
        crop = training.augment.crop
        # As large as pixels of 0-255 less their mean.
        images = torch.randn(batch_size, 3, crop, crop, device=self.device) * 50
        self.images = images.to(self.dtype, memory_format=torch.channels_last)
        self.ids = torch.arange(batch_size, device=self.device)
        self.labels = self.ids % CLASSES
        self.steps_taken = 0
        self.steps_per_call = 30 if self.device.type == "cuda" else 1
        float_images = self.images.float()
        self.forward_flop = count_forward_flop(self.net, float_images) / batch_size
        # Backward computes a gradient by each layer's weights and one by its input, each as
        # expensive as forward. Only the gradient by the images is not needed.
        unneeded_flop = count_first_layer_flop(self.net, float_images) / batch_size
        step_flop = 3 * self.forward_flop - unneeded_flop
        if mode != "eager":
            compile_network(self.net, "reduce-overhead" if mode == "graphs" else None)
        # Counted in a first step, which compiles a network that is to be; the update stays eager.
        count_bytes = count_eager_bytes if mode == "eager" else count_compiled_bytes
        step_bytes = count_bytes(self.compute_gradients) + count_eager_bytes(self.update_weights)
        self.cost = Cost(step_flop, step_bytes / batch_size)

    def __call__(self) -> int:
        for _ in range(self.steps_per_call):
            self.take_step()
        wait_for_device()
        return self.steps_per_call * len(self.images)

    def load_batch(self, images: Tensor, labels: Tensor) -> None:
        """Copies a batch over the last one."""
        self.images.copy_(images.to(self.device, non_blocking=True))
        self.labels.copy_(labels.to(self.device, non_blocking=True))

    def take_step(self) -> None:
        set_dropout_keys(self.net, rng.make_keys(0, self.steps_taken, self.ids))
        self.compute_gradients()
        self.update_weights()
        self.steps_taken += 1

    def compute_gradients(self) -> None:
        with self.autocast():
            loss = F.cross_entropy(self.net(self.images), self.labels)
        torch.autograd.backward(loss)

    def update_weights(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def autocast(self) -> torch.autocast:
        """The run's precision, in which the network computes."""
        mixed = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)
