"""The LightningDataModule: a store, the loaders over its splits, and the augmentation on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor

from alexnet.data.augment import Augment
from alexnet.data.loader import Batch, Loader, Order
from alexnet.data.store import open_store


class Images(NamedTuple):
    """What the net sees: images (n, 3, crop, crop) float32; labels and ids (n,) int64; weights (n,) float32."""

    images: Tensor
    labels: Tensor
    weights: Tensor
    ids: Tensor


class StoreData(L.LightningDataModule):
    """Pictures of a prepared store.

    Arguments:
        folder: the store.
        make: fills the folder if it is empty; null expects that `prepare.py` did.
        batch_size: pictures a step, of all devices together.
        threads: that read ahead, per process.
        augment: builds the `Augment` from the store's statistics.
        seed: of the order and the augmentation.
    Raises FileNotFoundError or ValueError if the folder holds no whole store.
    """

    def __init__(
        self,
        folder: str,
        make: Callable[[Path], None] | None,
        batch_size: int,
        threads: int,
        augment: Callable[..., Augment],
        seed: int,
    ):
        super().__init__()
        if threads < 1:
            raise ValueError(f"data.threads={threads} must be at least 1")
        self.store = store = open_store(folder, make)
        self.batch_size, self.threads, self.seed, self.classes = batch_size, threads, seed, store.classes
        self.augment = augment(store.mean, store.color_std, store.color_vectors, seed)

    def order(self, split: str, rank: int = 0, world_size: int = 1) -> Order:
        pictures = len(self.store.splits[split])
        return Order(pictures, self.batch_size, self.seed, rank, world_size, train=split == "train")

    def loader(self, split: str) -> Loader:
        """This rank's batches of `train` or `val`, as raw bytes."""
        share = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {"rank": 0, "num_replicas": 1}
        order = self.order(split, share["rank"], share["num_replicas"])  # ranks that share a net's towers share batches
        return Loader(self.store.splits[split], order, self.threads, pin_memory=torch.cuda.is_available())

    def train_dataloader(self) -> Loader:
        return self.loader("train")

    def val_dataloader(self) -> Loader:
        return self.loader("val")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Images:
        """Bytes to what the net sees; runs on the device."""
        assert self.trainer is not None
        if self.trainer.training:
            images = self.augment.train(batch.pictures, batch.ids, self.trainer.current_epoch)
        else:
            images = self.augment.center(batch.pictures)
        return Images(self.trainer.precision_plugin.convert_input(images), batch.labels, batch.weights, batch.ids)
