"""The LightningDataModule: a store, the loaders over its splits, and the augmentation on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor

from alexnet.data.augment import Augment
from alexnet.data.loader import CPU, Batch, Loader, Order
from alexnet.data.store import CACHE, CACHE_GB, open_store

WINDOW = 32  # shards of a URL: 1.6 GB of 256² pictures


class Images(NamedTuple):
    """What the net sees: images (n, 3, crop, crop) float32; labels and ids (n,) int64; weights (n,) float32."""

    images: Tensor
    labels: Tensor
    weights: Tensor
    ids: Tensor


class StoreData(L.LightningDataModule):
    """Pictures of a prepared store.

    Arguments:
        folder: the store, or the URL of one that fsspec knows: s3://…, gs://…, hf://….
        make: fills the folder if it is empty; null expects that `prepare.py` did.
        batch_size: pictures a step, of all devices together.
        threads: that read ahead, per process.
        augment: builds the `Augment` from the store's statistics.
        seed: of the order and the augmentation.
        window: shards (256 pictures each) that are shuffled together; null: the whole store, or 32 shards of a URL's.
        cache: folder for a URL's shards; two windows of them are kept, that in use and the next.
        cache_gb: what it may hold.
    Raises FileNotFoundError or ValueError if the folder holds no whole store, ConnectionError if it can't be fetched.
    """

    def __init__(
        self,
        folder: str,
        make: Callable[[Path], None] | None,
        batch_size: int,
        threads: int,
        augment: Callable[..., Augment],
        seed: int,
        window: int | None = None,
        cache: str = CACHE,
        cache_gb: float = CACHE_GB,
    ):
        super().__init__()
        if threads < 1:
            raise ValueError(f"data.threads={threads} must be at least 1")
        if window is not None and window < 1:
            raise ValueError(f"data.window={window} must be at least 1, or null")
        self.store = store = open_store(folder, make, cache, cache_gb)
        self.window = window or (WINDOW if store.remote else None)
        if store.remote and self.window and (needed := store.remote.largest(2 * self.window) / 1e9) > cache_gb:
            raise ValueError(
                f"data.cache_gb={cache_gb} holds no two windows of data.window={self.window} shards, {needed:.3f} GB: "
                "give more, or a smaller window"
            )
        self.batch_size, self.threads, self.seed, self.classes = batch_size, threads, seed, store.classes
        self.augment = augment(store.mean, store.color_std, store.color_vectors, seed)

    def order(self, split: str, rank: int = 0, world_size: int = 1) -> Order:
        shards, train = self.store.splits[split], split == "train"
        return Order(
            len(shards), self.batch_size, self.seed, rank, world_size, train, self.window, starts=shards.starts
        )

    def loader(self, split: str, device: torch.device = CPU) -> Loader:
        """This rank's batches of `train` or `val`, as raw bytes."""
        share = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {"rank": 0, "num_replicas": 1}
        order = self.order(split, share["rank"], share["num_replicas"])  # ranks that share a net's towers share batches
        return Loader(self.store.splits[split], order, self.threads, device)

    def train_dataloader(self) -> Loader:
        assert self.trainer is not None
        return self.loader("train", self.trainer.strategy.root_device)

    def val_dataloader(self) -> Loader:
        assert self.trainer is not None
        return self.loader("val", self.trainer.strategy.root_device)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Images:
        """Bytes to what the net sees; runs on the device."""
        assert self.trainer is not None
        if self.trainer.training:
            images = self.augment.train(batch.pictures, batch.ids, self.trainer.current_epoch)
        else:
            images = self.augment.center(batch.pictures)
        return Images(self.trainer.precision_plugin.convert_input(images), batch.labels, batch.weights, batch.ids)
