"""Training from a store, everything included: `train.py`'s loop against a plain PyTorch loop of the same net and
batches, the same without data, and torchvision's alexnet from an image folder in the usual way."""

import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import count, islice, repeat
from threading import Semaphore, Thread
from typing import Any

import lightning as L
import torch
import torchvision
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from alexnet.benchmarks.loader import read, usual
from alexnet.benchmarks.photographs import made
from alexnet.benchmarks.run import Candidate
from alexnet.benchmarks.step import CLASSES, Steps, built, ceilings, configuration, device, finish
from alexnet.data.datamodule import StoreData
from alexnet.training.train import build

log = logging.getLogger(__name__)


def list_candidates(cfg: DictConfig) -> list[Candidate]:
    train = configuration(cfg)
    data: StoreData = instantiate(train.data)
    if cfg.compile and device().type == "cuda":  # as train.py does
        data.augment.compile()
    steps, memory = (
        Steps(built(train, cfg.fused), train, "compiled" if cfg.compile else "eager")
        for _ in range(2)
    )
    peer = Steps(torchvision.models.alexnet(num_classes=CLASSES), train, "eager")
    peer.optimizer = torch.optim.SGD(peer.net.parameters(), 0.01, 0.9, weight_decay=0.0005)
    return [
        *ceilings(train),
        Candidate("train.py", Training(train, cfg.steps), memory.cost, "plain loop"),
        Candidate(
            "plain loop",
            partial(_take, steps, _store(data), cfg.steps),
            memory.cost,
            "plain loop, no data",
        ),
        Candidate(
            "plain loop, no data", partial(_take, memory, repeat(None), cfg.steps), memory.cost
        ),
        Candidate("torchvision, no data", partial(_take, peer, repeat(None), cfg.steps), peer.cost),
        Candidate(
            "torchvision, ImageFolder", partial(_take, peer, _folder(cfg), cfg.steps), peer.cost
        ),
    ]


class Training(L.Callback):
    """`train.py`'s own loop with its callbacks, in a thread, which stands still between rounds. Nothing is validated,
    saved or shown."""

    def __init__(self, train: DictConfig, steps: int):
        self.steps, self.taken, self.since, self.waited = steps, 0, 0.0, 0.0
        self.begin, self.end = Semaphore(0), Semaphore(0)
        run = build(train)
        self.images = steps * run.data.batch_size
        run.trainer.callbacks.append(self)  # type: ignore[attr-defined]
        Thread(
            target=run.trainer.fit, args=(run.module,), kwargs={"datamodule": run.data}, daemon=True
        ).start()
        self.end.acquire()

    def __call__(self) -> int:
        self.begin.release()
        self.end.acquire()
        return self.images

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.taken % self.steps == 0:
            finish()
            loader: Any = trainer.train_dataloader
            if self.taken:
                share = (loader.waited - self.waited) / (time.perf_counter() - self.since)
                log.info("train.py waited for data in %.2f %% of the time", 100 * share)
            self.end.release()
            self.begin.acquire()
            self.since, self.waited = time.perf_counter(), loader.waited
        self.taken += 1


def _take(steps: Steps, batches: Iterator[tuple[Tensor, Tensor] | None], count: int) -> int:
    for batch in islice(batches, count):
        if batch:
            images, labels = (t.to(device(), non_blocking=True) for t in batch)
            steps.images, steps.labels = steps.images.copy_(images), steps.labels.copy_(labels)
        steps.step()
    finish()
    return count * len(steps.images)


def _store(data: StoreData) -> Iterator[tuple[Tensor, Tensor]]:
    loader = data.loader("train", device())
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            yield data.augment.train(batch.images, batch.ids, epoch), batch.labels


def _folder(cfg: DictConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """As most people would: a worker for each core, images decoded at full size."""
    images = ImageFolder(str(made(cfg) / "train"), v2.Compose(usual()), loader=read)
    sizes = {
        "batch_size": cfg.batch_size,
        "num_workers": os.cpu_count(),
        "persistent_workers": True,
    }
    loader = DataLoader(
        images, shuffle=True, drop_last=True, pin_memory=torch.cuda.is_available(), **sizes
    )
    while True:
        yield from loader
