"""A callback that fails on one rank."""

import lightning as L


class FailingRank(L.Callback):
    def __init__(self, rank: int):
        self.rank = rank

    def on_train_batch_end(self, trainer: L.Trainer, *rest: object) -> None:
        if trainer.global_rank == self.rank:
            raise RuntimeError("this rank fails")
