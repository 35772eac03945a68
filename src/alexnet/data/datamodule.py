"""The LightningDataModule: a store, loaders over its splits, and the augmentation on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from alexnet.data.augment import Augment
from alexnet.data.loader import CPU, BatchSampler, Loader, RawBatch
from alexnet.data.store import CACHE, CACHE_GB, open_store
from alexnet.data.threads import count_usable_cores
from alexnet.errors import UserError

THREADS = {"raw": 4, "jpeg": 16}  # enough to keep a GPU busy
WINDOW = 32  # shards of a URL: 1.6 GB of 256 × 256 images


class Batch(NamedTuple):
    """A batch as the network sees it."""

    images: Tensor  # (n, 3, crop, crop) float32
    labels: Tensor  # (n,) int64
    weights: Tensor  # (n,) float32, 1, or 0 where a row is padding
    ids: Tensor  # (n,) int64, the images' numbers in the split


class StoreData(L.LightningDataModule):
    """Images of a prepared store.

    Arguments:
        folder: the store, or the URL of one that fsspec knows: s3://…, gs://…, hf://….
        make: fills the folder if it is empty; None if `prepare.py` has done that.
        batch_size: images per step, of all devices together.
        threads: prefetch threads per process; None: 4 (16 for JPEG), capped by available cores.
        augment: builds the `Augment` from the store's statistics and the seed.
        seed: of the order and the augmentation.
        window: shards (256 images each) that are shuffled together; None: all, or 32 for a URL.
        cache: folder for a URL's shards.
        cache_gb: its size. Two windows must fit: the current one and the next.

    Raises UserError if there is no store, if it is damaged, or if it can't be downloaded.
    """

    def __init__(
        self,
        folder: str,
        make: Callable[[Path], None] | None,
        batch_size: PositiveInt,
        threads: PositiveInt | None,
        augment: Callable[..., Augment],
        seed: int,
        window: PositiveInt | None = None,
        cache: str = CACHE,
        cache_gb: PositiveFloat = CACHE_GB,
    ):
        super().__init__()
        self.store = open_store(folder, make, cache, cache_gb)
        self.classes = self.store.classes
        self.batch_size = batch_size
        self.chosen_threads = threads
        self.seed = seed
        self.window = window
        if self.store.shards.limit is not None:
            self.window = window or WINDOW
            self._check_cache(self.window, cache_gb)
        store = self.store
        self.augment = augment(store.mean, store.color_std, store.color_vectors, seed)

    @property
    def threads(self) -> int:
        """How many threads read, in each process."""
        if self.chosen_threads is not None:
            return self.chosen_threads
        processes = self.trainer.num_devices if self.trainer else 1
        cores = count_usable_cores() // processes
        return max(1, min(cores, THREADS[self.store.manifest["encoding"]]))

    def build_sampler(self, split: str, rank: int = 0, world_size: int = 1) -> BatchSampler:
        images = self.store.splits[split]
        return BatchSampler(
            images=len(images),
            batch_size=self.batch_size,
            train=split == "train",
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            window=self.window,
            starts=images.starts,
        )

    def build_loader(self, split: str, device: torch.device = CPU) -> Loader:
        """For this rank's batches of a split."""
        # None on a single device. Ranks that hold towers of the same network read the same batches.
        ranks = self.trainer.distributed_sampler_kwargs if self.trainer else None
        if ranks is None:
            sampler = self.build_sampler(split)
        else:
            sampler = self.build_sampler(split, ranks["rank"], ranks["num_replicas"])
        return Loader(self.store.splits[split], sampler, self.threads, device)

    def train_dataloader(self) -> Loader:
        assert self.trainer is not None
        return self.build_loader("train", self.trainer.strategy.root_device)

    def val_dataloader(self) -> Loader:
        assert self.trainer is not None
        return self.build_loader("val", self.trainer.strategy.root_device)

    def on_after_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> Batch:
        """Turns bytes into what the network sees, on the device."""
        assert self.trainer is not None
        if self.trainer.training:
            epoch = self.trainer.current_epoch
            images = self.augment.crop_randomly(batch.images, batch.ids, epoch)
        else:
            images = self.augment.crop_center(batch.images)
        images = self.trainer.precision_plugin.convert_input(images)
        return Batch(images, batch.labels, batch.weights, batch.ids)

    def _check_cache(self, window: int, cache_gb: float) -> None:
        needed = self.store.count_largest_bytes(2 * window) / 1e9
        if needed > cache_gb:
            raise UserError(
                f"data.cache_gb={cache_gb} is too small for two windows of {window} shards "
                f"({needed:.3f} GB): raise it or lower data.window"
            )
