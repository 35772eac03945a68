"""How a run uses several devices: the choices of `conf/parallel/`.

Every strategy trains the same network on the same batches, to the same numbers but for rounding,
and reads and writes the same checkpoints.
"""

from abc import ABC, abstractmethod
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat, PositiveInt

from alexnet.errors import UserError

# torch.distributed and Lightning take seconds to import. Methods import them where they are needed,
# so that a wrong option is reported at once.
if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class ParallelStrategy(ABC):
    """What differs between ways to use several devices.

    A mesh has two dimensions: the devices of a group share a network ("tensor_parallel"), and the
    groups train copies of it on images of their own ("data_parallel").

    Attributes:
        can_compile: whether torch.compile takes the network once it is parallelized.

    Arguments:
        timeout: seconds after which a process that hears nothing from another ends the run.
    """

    can_compile: ClassVar[bool] = False

    def __init__(self, timeout: PositiveFloat):
        self.timeout = timedelta(seconds=timeout)

    def count_batch_shards(self, world_size: int) -> int:
        """Into how many parts each batch is split."""
        return world_size

    @abstractmethod
    def check(self, net: "nn.Module", world_size: int, precision: str) -> None:
        """Raises UserError if this strategy cannot train `net`."""

    @abstractmethod
    def build_lightning_strategy(self, world_size: int) -> "Strategy | str": ...

    @abstractmethod
    def parallelize(self, net: "nn.Module", mesh: "DeviceMesh") -> "ProcessGroup | None":
        """Shards `net` over the mesh.

        Returns the process group over which images are counted; None stands for all processes.
        """

    def gather_keys(self, keys: "Tensor", mesh: "DeviceMesh | None") -> "Tensor":
        """The keys of the images that the fully connected layers of this device see."""
        return keys


class DataParallel(ParallelStrategy):
    """One device, or a copy of the network on each of several (DDP)."""

    can_compile = True

    def __init__(self, ddp_on_one_device: bool, timeout: PositiveFloat):
        super().__init__(timeout)
        self.ddp_on_one_device = ddp_on_one_device

    def check(self, net: "nn.Module", world_size: int, precision: str) -> None:
        pass  # takes every network

    def build_lightning_strategy(self, world_size: int) -> "Strategy | str":
        from lightning.pytorch.strategies import DDPStrategy

        if world_size > 1 or self.ddp_on_one_device:
            return DDPStrategy(timeout=self.timeout)
        return "auto"

    def parallelize(self, net: "nn.Module", mesh: "DeviceMesh") -> None:
        pass  # Lightning wraps the network


class TowerParallel(ParallelStrategy):
    """Fig. 2: the devices of a group hold a tower each; several groups are data-parallel."""

    def __init__(self, group_size: PositiveInt, timeout: PositiveFloat):
        super().__init__(timeout)
        self.group_size = group_size

    def count_batch_shards(self, world_size: int) -> int:
        return max(world_size // self.group_size, 1)

    def check(self, net: "nn.Module", world_size: int, precision: str) -> None:
        divides = getattr(net, "towers", 1) % self.group_size == 0
        communicates = getattr(net, "communicate", False)
        if not divides or not communicates or getattr(net, "norm_across_towers", False):
            raise UserError(
                f"parallel=towers needs a network of {self.group_size} towers that communicate, "
                "and norms within each tower: model=alexnet, alexnet_2012, alexnet_six_conv …"
            )
        _check_precision("towers", precision)
        _check_group("towers", net, world_size, self.group_size)

    def build_lightning_strategy(self, world_size: int) -> "Strategy":
        return _build_model_parallel(world_size, group_size=self.group_size, timeout=self.timeout)

    def parallelize(self, net: "nn.Module", mesh: "DeviceMesh") -> "ProcessGroup":
        from alexnet.parallel.tensor_parallel import parallelize_towers

        parallelize_towers(net, mesh)
        return mesh["data_parallel"].get_group()


class HybridParallel(ParallelStrategy):
    """Krizhevsky 2014: data-parallel convolutions, sharded fully connected layers.

    Each device runs the convolutions on its own images. The fully connected layers are sharded over
    a group of devices and see the images of the whole group.
    """

    def __init__(self, group_size: PositiveInt, timeout: PositiveFloat):
        super().__init__(timeout)
        self.group_size = group_size

    def check(self, net: "nn.Module", world_size: int, precision: str) -> None:
        if not hasattr(net, "fc6") or not getattr(net, "communicate", False):
            raise UserError(
                "parallel=hybrid needs an AlexNet whose fully connected layers see both towers"
            )
        _check_precision("hybrid", precision)
        _check_group("hybrid", net, world_size, self.group_size)

    def build_lightning_strategy(self, world_size: int) -> "Strategy":
        return _build_model_parallel(
            world_size,
            group_size=self.group_size,
            timeout=self.timeout,
            every_rank_has_own_images=True,
        )

    def parallelize(self, net: "nn.Module", mesh: "DeviceMesh") -> None:
        from alexnet.parallel.tensor_parallel import parallelize_hybrid

        parallelize_hybrid(net, mesh)

    def gather_keys(self, keys: "Tensor", mesh: "DeviceMesh | None") -> "Tensor":
        from torch.distributed import all_gather_into_tensor

        assert mesh is not None
        group = mesh["tensor_parallel"]
        gathered = keys.new_empty(len(keys) * group.size())
        all_gather_into_tensor(gathered, keys.contiguous(), group.get_group())
        return gathered


class FullyShardedParallel(ParallelStrategy):
    """Data-parallel, but each device keeps a shard of weights, gradients and velocities (FSDP)."""

    def check(self, net: "nn.Module", world_size: int, precision: str) -> None:
        _check_precision("fsdp", precision)

    def build_lightning_strategy(self, world_size: int) -> "Strategy":
        return _build_model_parallel(world_size, group_size=1, timeout=self.timeout)

    def parallelize(self, net: "nn.Module", mesh: "DeviceMesh") -> None:
        from torch.distributed.fsdp import fully_shard

        data_mesh = mesh["data_parallel"]
        for layer in net.children():
            if next(layer.parameters(), None) is not None:
                fully_shard(layer, mesh=data_mesh)
        fully_shard(net, mesh=data_mesh)


def _check_precision(choice: str, precision: str) -> None:
    if precision == "16-mixed":
        raise UserError(
            f"parallel={choice} does not support trainer.precision=16-mixed (gradient scaling): "
            "use bf16-mixed"
        )


def _check_group(choice: str, net: "nn.Module", world_size: int, group_size: int) -> None:
    if world_size % group_size:
        raise UserError(
            f"parallel={choice} needs devices in groups of {group_size}, but there are "
            f"{world_size}: change trainer.devices or parallel.group_size"
        )
    for name in ("fc6", "fc7"):
        units = getattr(getattr(net, name, None), "out_features", 0)
        if units % group_size:
            raise UserError(
                f"parallel={choice}: {name} has {units} units, which are not divisible by "
                f"parallel.group_size={group_size}"
            )


def _build_model_parallel(
    world_size: int,
    *,
    group_size: int,
    timeout: timedelta,
    every_rank_has_own_images: bool = False,
) -> "Strategy":
    from alexnet.parallel.lightning_strategy import ModelParallel

    return ModelParallel(
        data_parallel_size=world_size // group_size,
        tensor_parallel_size=group_size,
        timeout=timeout,
        every_rank_has_own_images=every_rank_has_own_images,
    )
