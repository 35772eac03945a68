"""Batches ready for the device: our stores against torchvision's ImageFolder and DataLoader."""

from collections.abc import Iterable, Sized
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from alexnet.benchmarks.baselines import list_usual_transforms, open_image_folder
from alexnet.benchmarks.candidate import Candidate
from alexnet.benchmarks.photographs import prepare_photographs, write_squares
from alexnet.data.loader import BatchSampler, Loader
from alexnet.data.prepare import prepare_store
from alexnet.data.store import Store

BATCH_SIZE = 128
# By encoding, so that a round of ours lasts long enough to be measured.
EPOCHS_PER_ROUND: dict[Literal["raw", "jpeg"], int] = {"raw": 20, "jpeg": 2}


def list_candidates(config: DictConfig) -> list[Candidate]:
    """Baselines use two worker processes, which is typical, and none, which takes less CPU time."""
    torch.set_num_threads(1)  # threads and workers are what is compared
    batch_size = min(BATCH_SIZE, config.images)
    photographs = prepare_photographs(config)
    squares = write_squares(photographs, photographs.with_name(photographs.name + "-256"))
    candidates = []
    # Ours, by one reading thread and by two.
    for encoding, epochs in EPOCHS_PER_ROUND.items():
        store = prepare_store(str(photographs), f"{photographs}-{encoding}", 256, encoding=encoding)
        for threads in (1, 2):
            name = f"{encoding} store, threads={threads}"
            work = partial(read_store, store, batch_size, threads, epochs)
            candidates.append(Candidate(name, work))
    # torchvision's, on files that are as small as the store's images, and in the usual way.
    for kind, folder, transforms in (
        ("256² JPEGs, RandomCrop, uint8", squares, [v2.RandomCrop(224)]),
        ("full size, Resize + RandomCrop, float32", photographs, list_usual_transforms()),
    ):
        for workers in (2, 0):
            name = f"ImageFolder, {kind}, num_workers={workers}"
            work = partial(read_image_folder, folder / "train", batch_size, transforms, workers)
            candidates.append(Candidate(name, work))
    return candidates


def read_store(store: Store, batch_size: int, threads: int, epochs: int) -> int:
    """Reads a store's training images and returns how many."""
    split = store.splits["train"]
    sampler = BatchSampler(images=len(split), batch_size=batch_size, train=True)
    loader = Loader(split, sampler, threads)
    return sum(count_images(loader) for _ in range(epochs))


def read_image_folder(
    folder: Path, batch_size: int, transforms: list[nn.Module], workers: int
) -> int:
    """Reads a folder of images once and returns how many."""
    images = open_image_folder(folder, transforms)
    loader: DataLoader[Any] = DataLoader(
        images, batch_size, shuffle=True, drop_last=True, num_workers=workers
    )
    return count_images(loader)


def count_images(batches: Iterable[tuple[Sized, ...]]) -> int:
    return sum(len(batch[0]) for batch in batches)
