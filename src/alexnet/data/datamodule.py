"""The LightningDataModule: a store, the loaders over its splits, and the augmentation on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor

from alexnet.data.augment import Augment
from alexnet.data.loader import CPU, BatchSampler, Loader, RawBatch
from alexnet.data.store.reader import CACHE, CACHE_GB, open_store
from alexnet.data.threads import count_usable_cores

THREADS = {"raw": 4, "jpeg": 16}  # enough for a GPU
WINDOW = 32  # shards of a URL: 1.6 GB of 256² images


class Batch(NamedTuple):
    """What the net sees: images (n, 3, crop, crop) float32; labels and ids (n,) int64; weights (n,) float32."""

    images: Tensor
    labels: Tensor
    weights: Tensor
    ids: Tensor


class StoreData(L.LightningDataModule):
    """Images of a prepared store.

    Arguments:
        folder: the store, or the URL of one that fsspec knows: s3://…, gs://…, hf://….
        make: fills the folder if it is empty; null expects that `prepare.py` did.
        batch_size: images a step, of all devices together.
        threads: that read ahead, per process; null: 4, or 16 for JPEG, as far as there are cores for each device.
        augment: builds the `Augment` from the store's statistics.
        seed: of the order and the augmentation.
        window: shards (256 images each) that are shuffled together; null: the whole store, or 32 shards of a URL's.
        cache: folder for a URL's shards; two windows of them are kept, that in use and the next.
        cache_gb: what it may hold.
    Raises FileNotFoundError or ValueError if the folder holds no whole store, ConnectionError if it can't be fetched.
    """

    def __init__(
        self,
        folder: str,
        make: Callable[[Path], None] | None,
        batch_size: int,
        threads: int | None,
        augment: Callable[..., Augment],
        seed: int,
        window: int | None = None,
        cache: str = CACHE,
        cache_gb: float = CACHE_GB,
    ):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size={batch_size} must be at least 1")
        for name, count in (("threads", threads), ("window", window)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"data.{name}={count} must be null or a whole number from 1 on")
        self.store = store = open_store(folder, make, cache, cache_gb)
        self.window = window or (WINDOW if store.remote else None)
        if (
            store.remote
            and self.window
            and (needed := store.remote.largest(2 * self.window) / 1e9) > cache_gb
        ):
            raise ValueError(
                f"data.cache_gb={cache_gb} holds no two windows of data.window={self.window} shards, {needed:.3f} GB: "
                "give more, or a smaller window"
            )
        self.batch_size, self.given_threads, self.seed, self.classes = (
            batch_size,
            threads,
            seed,
            store.classes,
        )
        self.augment = augment(store.mean, store.color_std, store.color_vectors, seed)

    @property
    def threads(self) -> int:
        cores = count_usable_cores() // (self.trainer.num_devices if self.trainer else 1)
        return self.given_threads or max(min(cores, THREADS[self.store.manifest["encoding"]]), 1)

    def order(self, split: str, rank: int = 0, world_size: int = 1) -> BatchSampler:
        shards, train = self.store.splits[split], split == "train"
        return BatchSampler(
            len(shards),
            self.batch_size,
            self.seed,
            rank,
            world_size,
            train,
            self.window,
            starts=shards.starts,
        )

    def loader(self, split: str, device: torch.device = CPU) -> Loader:
        """This rank's batches of `train` or `val`, as raw bytes."""
        share = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {
            "rank": 0,
            "num_replicas": 1,
        }
        order = self.order(
            split, share["rank"], share["num_replicas"]
        )  # ranks that share a net's towers share batches
        return Loader(self.store.splits[split], order, self.threads, device)

    def train_dataloader(self) -> Loader:
        assert self.trainer is not None
        return self.loader("train", self.trainer.strategy.root_device)

    def val_dataloader(self) -> Loader:
        assert self.trainer is not None
        return self.loader("val", self.trainer.strategy.root_device)

    def on_after_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> Batch:
        """Bytes to what the net sees; runs on the device."""
        assert self.trainer is not None
        if self.trainer.training:
            images = self.augment.train(batch.images, batch.ids, self.trainer.current_epoch)
        else:
            images = self.augment.center(batch.images)
        return Batch(
            self.trainer.precision_plugin.convert_input(images),
            batch.labels,
            batch.weights,
            batch.ids,
        )
