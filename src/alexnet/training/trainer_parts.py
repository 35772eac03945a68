"""What Lightning's trainer holds in this project. Lightning itself declares no types for it."""

import lightning as L

from alexnet.data.datamodule import StoreData
from alexnet.data.loader import Loader


def get_data(trainer: L.Trainer) -> StoreData:
    data: object = getattr(trainer, "datamodule", None)
    assert isinstance(data, StoreData)
    return data


def get_train_loader(trainer: L.Trainer) -> Loader:
    loader: object = trainer.train_dataloader
    assert isinstance(loader, Loader)
    return loader


def get_log_interval(trainer: L.Trainer) -> int:
    """Steps between two entries of the logs: trainer.log_every_n_steps."""
    interval: object = getattr(trainer, "log_every_n_steps", None)
    assert isinstance(interval, int)
    return interval
