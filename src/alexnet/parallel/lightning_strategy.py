"""Lightning's model-parallel strategy, for groups that share images and for groups that do not."""

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy


class ModelParallel(ModelParallelStrategy):
    """By default the devices of a tensor-parallel group see the same images."""

    every_rank_has_images_of_its_own = False

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        if self.every_rank_has_images_of_its_own:
            return {"num_replicas": self.world_size, "rank": self.global_rank}
        return super().distributed_sampler_kwargs
