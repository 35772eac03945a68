"""All of training from a store: train.py against plain PyTorch loops.

The plain loops train the same network on the same batches, and on one batch that stays on the
device. torchvision's AlexNet trains from an image folder in the usual way, and on one batch too.
"""

import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from threading import Semaphore, Thread
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from alexnet.benchmarks.baselines import (
    build_torchvision_network,
    list_usual_transforms,
    open_image_folder,
)
from alexnet.benchmarks.candidate import Candidate
from alexnet.benchmarks.ceilings import list_ceilings, wait_for_device
from alexnet.benchmarks.photographs import prepare_photographs
from alexnet.benchmarks.training_steps import (
    TrainingSteps,
    build_eager_network,
    choose_dtype,
    compose_training_config,
)
from alexnet.data.datamodule import StoreData
from alexnet.devices import choose_device
from alexnet.options import build_object
from alexnet.training.train import TrainingRun, build_run

log = logging.getLogger(__name__)
Batches = Iterator[tuple[Tensor, Tensor]]  # images as the network sees them, and labels


def list_candidates(config: DictConfig) -> list[Candidate]:
    training = compose_training_config(config)
    on_store = build_own_steps(config, training)
    on_one_batch = build_own_steps(config, training)
    theirs = TrainingSteps(build_torchvision_network(), training, "eager")
    # torch's own rule with the paper's settings; ours is one of the things that are compared.
    theirs.optimizer = torch.optim.SGD(
        theirs.net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005
    )
    cost = on_one_batch.cost  # all three train the same network
    store = iterate_store(build_data(config, training))
    folder = iterate_image_folder(config)
    steps = config.steps
    return [
        *list_ceilings(choose_dtype(training)),
        Candidate("train.py", PausedTraining(training, steps), cost, "plain loop"),
        Candidate(
            "plain loop",
            partial(train_on_batches, on_store, store, steps),
            cost,
            "plain loop, no data",
        ),
        Candidate(
            "plain loop, no data",
            partial(train_on_one_batch, on_one_batch, steps),
            cost,
        ),
        Candidate("torchvision, no data", partial(train_on_one_batch, theirs, steps), theirs.cost),
        Candidate(
            "torchvision, ImageFolder",
            partial(train_on_batches, theirs, folder, steps),
            theirs.cost,
        ),
    ]


def build_own_steps(config: DictConfig, training: DictConfig) -> TrainingSteps:
    net = build_eager_network(training, fused=config.fused)
    return TrainingSteps(net, training, "compiled" if config.compile else "eager")


def build_data(config: DictConfig, training: DictConfig) -> StoreData:
    data: StoreData = build_object(training.data)
    if config.compile and choose_device("auto").type == "cuda":
        data.augment.compile()  # as train.py does
    return data


class PausedTraining(L.Callback):
    """train.py's own loop with its callbacks, in a thread that pauses between rounds.

    Lightning's loop cannot be left and entered again between two steps. So `fit` runs in a thread
    that waits before the first step of each round until it is called. Nothing is validated, saved
    or shown.
    """

    def __init__(self, training: DictConfig, steps: int):
        self.steps = steps
        self.steps_taken = 0
        self.round_start = 0.0
        self.waited_before = 0.0
        self.failure: Exception | None = None
        self.may_start = Semaphore(0)
        self.has_paused = Semaphore(0)
        run = build_run(training)
        self.images = steps * run.data.batch_size
        run.trainer.callbacks.append(self)  # type: ignore[attr-defined]
        # A daemon, since it waits forever after the last round.
        Thread(target=self.fit, args=(run,), daemon=True).start()
        self.wait_for_pause()

    def __call__(self) -> int:
        self.may_start.release()
        self.wait_for_pause()
        return self.images

    def fit(self, run: TrainingRun) -> None:
        """Trains until the process ends; keeps an error for the thread that waits."""
        try:
            run.trainer.fit(run.module, datamodule=run.data)
        except Exception as error:
            self.failure = error
            self.has_paused.release()

    def wait_for_pause(self) -> None:
        self.has_paused.acquire()
        if self.failure is not None:
            raise self.failure

    # Lightning calls it when it has the next batch, before the step.
    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.steps_taken % self.steps == 0:
            self.pause(trainer.train_dataloader)
        self.steps_taken += 1

    def pause(self, loader: Any) -> None:
        """Ends a round and waits for the next."""
        wait_for_device()
        if self.steps_taken:  # not before the first round
            seconds = time.perf_counter() - self.round_start
            waited = loader.waited - self.waited_before
            log.info("train.py waited for data in %.2f %% of the time", 100 * waited / seconds)
        self.has_paused.release()
        self.may_start.acquire()
        self.round_start = time.perf_counter()
        self.waited_before = loader.waited


def train_on_batches(training_steps: TrainingSteps, batches: Batches, steps: int) -> int:
    for images, labels in islice(batches, steps):
        training_steps.load_batch(images, labels)
        training_steps.take_step()
    wait_for_device()
    return steps * len(training_steps.images)


def train_on_one_batch(training_steps: TrainingSteps, steps: int) -> int:
    for _ in range(steps):
        training_steps.take_step()
    wait_for_device()
    return steps * len(training_steps.images)


def iterate_store(data: StoreData) -> Batches:
    """Augmented training batches, epoch after epoch."""
    loader = data.build_loader("train", choose_device("auto"))
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            yield data.augment.crop_randomly(batch.images, batch.ids, epoch), batch.labels


def iterate_image_folder(config: DictConfig) -> Batches:
    """As most people would: a worker for each core, images decoded at full size."""
    images = open_image_folder(prepare_photographs(config) / "train", list_usual_transforms())
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )
    while True:  # one epoch after the other
        yield from loader
