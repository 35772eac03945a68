"""Lightning's model-parallel strategy, with a choice of which devices read which images."""

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy


class ModelParallel(ModelParallelStrategy):
    """Devices in groups that share a network.

    By Lightning's own rule the devices of a group see the same images; with
    `every_rank_has_own_images` each reads its own. A checkpoint is a single file.
    """

    def __init__(
        self,
        *,
        data_parallel_size: int,
        tensor_parallel_size: int,
        timeout: timedelta,
        every_rank_has_own_images: bool,
    ):
        super().__init__(
            data_parallel_size=data_parallel_size,
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=False,
            timeout=timeout,
        )
        self.every_rank_has_own_images = every_rank_has_own_images

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        if self.every_rank_has_own_images:
            return {"num_replicas": self.world_size, "rank": self.global_rank}
        return super().distributed_sampler_kwargs
