"""Batches of 128, ready for the device: our stores against torchvision's ImageFolder and DataLoader."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from alexnet.benchmarks.photographs import made, squares
from alexnet.benchmarks.run import Candidate
from alexnet.data.loader import BatchSampler, Loader
from alexnet.data.prepare import prepare_store
from alexnet.data.store.reader import Store

BATCH = 128
EPOCHS = {"raw": 20, "jpeg": 2}  # of ours a round, so that each lasts long enough to be measured


def list_candidates(cfg: DictConfig) -> list[Candidate]:
    """The peers run with two worker processes, as people run them, and without, which computes less."""
    torch.set_num_threads(1)
    full = made(cfg)
    small = squares(full, full.with_name(full.name + "-256"))
    stores = {
        encoding: prepare_store(str(full), f"{full}-{encoding}", 256, encoding=encoding)
        for encoding in EPOCHS
    }
    stored = [
        Candidate(
            f"{encoding} store, threads={threads}", partial(ours, store, threads, EPOCHS[encoding])
        )
        for encoding, store in stores.items()
        for threads in (1, 2)
    ]
    return [
        *stored,
        *(
            Candidate(
                f"ImageFolder, {kind}, num_workers={workers}",
                partial(_peer, folder, transforms, workers),
            )
            for kind, folder, transforms in (
                ("256² JPEGs, RandomCrop, uint8", small, [v2.RandomCrop(224)]),
                ("full size, Resize + RandomCrop, float32", full, usual()),
            )
            for workers in (2, 0)
        ),
    ]


def ours(store: Store, threads: int, epochs: int) -> int:
    split = store.splits["train"]
    loader = Loader(split, BatchSampler(len(split), BATCH, 0, 0, 1, train=True), threads)
    return sum(_count(loader) for _ in range(epochs))


def _peer(folder: Path, transforms: list[torch.nn.Module], workers: int) -> int:
    images = ImageFolder(str(folder / "train"), v2.Compose(transforms), loader=read)
    return _count(DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=workers))


def read(path: str) -> torch.Tensor:
    return decode_image(path, ImageReadMode.RGB)


def usual() -> list[torch.nn.Module]:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    crop = [v2.Resize(256, antialias=True), v2.RandomCrop(224), v2.RandomHorizontalFlip()]
    return [*crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]


def _count(batches: Iterable) -> int:
    return sum(len(batch[0]) for batch in batches)
