"""How a run spreads over devices: the choices of `conf/parallel/`. Torch and Lightning are imported when they are used,
since a wrong choice is refused before. In all, `timeout` are the seconds after which a process that hears nothing of
another ends the run."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh


class DataParallel:
    """One device, or a whole copy of the network on each of several (DDP); with `even_alone` DDP on one, too."""

    def __init__(self, even_alone: bool, timeout: float):
        self.even_alone, self.timeout = even_alone, timedelta(seconds=timeout)

    def shares(self, world_size: int) -> int:
        """Into how many parts each batch is cut."""
        return world_size

    def check(self, net: "nn.Module", world_size: int, precision: str) -> None:
        """Raises ValueError if `net` can't be spread so."""

    def strategy(self, world_size: int) -> Any:
        from lightning.pytorch.strategies import DDPStrategy

        return DDPStrategy(timeout=self.timeout) if world_size > 1 or self.even_alone else "auto"

    def split(self, net: "nn.Module", mesh: "DeviceMesh") -> Any:
        """Spreads `net` and gives the process group over which images are counted; None is all processes."""

    def rows(self, keys: "Tensor", mesh: "DeviceMesh | None") -> "Tensor":
        """The keys of the images that the fully connected layers see here."""
        return keys


class Towers(DataParallel):
    """Fig. 2: each device of a group of `towers` holds that share of every layer; several groups are data-parallel."""

    def __init__(self, towers: int, timeout: float):
        self.towers, self.timeout = towers, timedelta(seconds=timeout)

    def shares(self, world_size: int) -> int:
        return max(world_size // self.towers, 1)

    def check(self, net: "nn.Module", world_size: int, precision: str) -> None:
        towers = getattr(net, "towers", 1)
        joined = getattr(net, "communicate", False)
        if towers % self.towers or not joined or getattr(net, "norm_across_towers", False):
            raise ValueError(
                f"parallel=towers needs a network of {self.towers} towers that communicate and norms within each: "
                "model=alexnet, alexnet_2012, alexnet_six_conv …"
            )
        _check_group(net, self.towers, world_size, precision, "towers")

    def strategy(self, world_size: int) -> Any:
        return _model_parallel(world_size, self.towers, self.timeout)

    def split(self, net: "nn.Module", mesh: "DeviceMesh") -> Any:
        from alexnet.parallel.tensor_parallel import parallelize_towers

        parallelize_towers(net, mesh)
        return mesh["data_parallel"].get_group()


class Hybrid(DataParallel):
    """Krizhevsky 2014: convolutions data-parallel; fully connected layers spread over groups of `group` devices."""

    def __init__(self, group: int, timeout: float):
        self.group, self.timeout = group, timedelta(seconds=timeout)

    def check(self, net: "nn.Module", world_size: int, precision: str) -> None:
        if not hasattr(net, "fc6") or not getattr(net, "communicate", False):
            raise ValueError(
                "parallel=hybrid needs an AlexNet whose fully connected layers see all of the maps"
            )
        _check_group(net, self.group, world_size, precision, "hybrid")

    def strategy(self, world_size: int) -> Any:
        strategy = _model_parallel(world_size, self.group, self.timeout)
        strategy.every_rank_has_images_of_its_own = True
        return strategy

    def split(self, net: "nn.Module", mesh: "DeviceMesh") -> Any:
        from alexnet.parallel.tensor_parallel import parallelize_hybrid

        parallelize_hybrid(net, mesh)

    def rows(self, keys: "Tensor", mesh: "DeviceMesh | None") -> "Tensor":
        from torch.distributed import all_gather_into_tensor

        assert mesh is not None
        group = mesh["tensor_parallel"]
        gathered = keys.new_empty(len(keys) * group.size())
        all_gather_into_tensor(gathered, keys.contiguous(), group.get_group())
        return gathered


class FullySharded(DataParallel):
    """Data-parallel, but each device keeps only its share of the weights, gradients and velocities (FSDP)."""

    def __init__(self, timeout: float):
        self.timeout = timedelta(seconds=timeout)

    def check(self, net: "nn.Module", world_size: int, precision: str) -> None:
        _check_group(net, 1, world_size, precision, "fsdp")

    def strategy(self, world_size: int) -> Any:
        return _model_parallel(world_size, 1, self.timeout)

    def split(self, net: "nn.Module", mesh: "DeviceMesh") -> Any:
        from torch.distributed.fsdp import fully_shard

        for layer in net.children():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh["data_parallel"])
        fully_shard(net, mesh=mesh["data_parallel"])


def _check_group(net: "nn.Module", group: int, world_size: int, precision: str, name: str) -> None:
    if world_size % group:
        raise ValueError(
            f"parallel={name} needs devices in groups of {group}, but there are {world_size} in all"
        )
    if precision == "16-mixed":
        raise ValueError(
            f"parallel={name} can't run in 16-mixed, which has to scale gradients: take bf16-mixed"
        )
    for layer in ("fc6", "fc7"):
        units = getattr(net, layer).out_features if hasattr(net, layer) else 0
        if units % group:
            raise ValueError(
                f"parallel={name}: {layer} has {units} units, which do not divide by {group} devices"
            )


def _model_parallel(world_size: int, group: int, timeout: timedelta) -> Any:
    from alexnet.parallel.lightning_strategy import ModelParallel

    return ModelParallel(
        data_parallel_size=world_size // group,
        tensor_parallel_size=group,
        save_distributed_checkpoint=False,
        timeout=timeout,
    )
