"""The network over several devices: Fig. 2's towers, and the hybrid of Krizhevsky 2014. Each is a plan, a dict from
layer name to parallel style, beside a network that knows nothing of it. Parameters become DTensors whose rows (output
channels or units) are spread; for a grouped convolution such a share is a tower. Names and shapes stay, so checkpoints
fit every form."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, parallelize_module
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from alexnet.nets.layers import Dropout, LocalResponseNorm


class Columns(ParallelStyle):
    """A convolution whose kernels are spread; with `gather` it sees the maps of all devices, else those of its own."""

    def __init__(self, gather: bool = False):
        super().__init__()
        self.gather = gather

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, value in list(module.named_parameters(recurse=False)):
            module.register_parameter(
                name, nn.Parameter(distribute_tensor(value, device_mesh, [Shard(0)]))
            )
        assert isinstance(module, nn.Conv2d)
        forward = partial(_convolve, module, device_mesh if self.gather else None)
        module.forward = forward  # type: ignore[method-assign]
        return module


def _convolve(conv: nn.Conv2d, mesh: DeviceMesh | None, x: Tensor) -> Tensor:
    """DTensor has no convolution over spread kernels (torch 2.15 silently gives wrong ones): it runs on local ones."""
    if mesh:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(
                torch.get_autocast_dtype(x.device.type)
            )  # the largest message of all, and a norm gives float32
        maps = DTensor.from_local(x, mesh, [Shard(1)], run_check=False).redistribute(
            placements=[Replicate()]
        )
        x = maps.to_local(grad_placements=[Partial()])
    weight, bias = (value.to_local() for value in (conv.weight, conv.bias))  # type: ignore[operator, union-attr]
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, groups)  # type: ignore[arg-type]


FIG_2 = {
    "conv1": Columns(),
    "conv2": Columns(),
    "conv3": Columns(gather=True),
    "conv4": Columns(),
    "conv5": Columns(),
    "conv6": Columns(gather=True),
    "fc6": ColwiseParallel(input_layouts=Shard(1)),
    "fc7": ColwiseParallel(input_layouts=Shard(1)),
    "fc8": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
}
# Convolutions on each device's own images; the fully connected layers see the images of the whole group.
KRIZHEVSKY_2014 = {
    "fc6": ColwiseParallel(input_layouts=Shard(0)),
    "fc7": ColwiseParallel(input_layouts=Shard(1)),
    "fc8": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(0)),
}


def parallelize_towers(net: nn.Module, mesh: DeviceMesh) -> None:
    """Spreads `net` over mesh["tensor_parallel"], and replicates that over mesh["data_parallel"]."""
    group = mesh["tensor_parallel"]
    _parallelize(net, group, FIG_2)
    for layer in net.modules():
        if isinstance(layer, LocalResponseNorm):
            layer.groups //= group.size()
    if mesh["data_parallel"].size() > 1:
        fully_shard(net, mesh=mesh["data_parallel"], reshard_after_forward=False)


def parallelize_hybrid(net: nn.Module, mesh: DeviceMesh) -> None:
    """Spreads the fully connected layers over mesh["tensor_parallel"]; convolutions see each device's own images."""
    group = mesh["tensor_parallel"]
    _parallelize(net, group, KRIZHEVSKY_2014)
    world = init_device_mesh(mesh.device_type, (dist.get_world_size(),), mesh_dim_names=("world",))
    for name, layer in net.named_children():
        if name.startswith("conv"):
            fully_shard(layer, mesh=world, reshard_after_forward=False)
        elif name.startswith("fc") and mesh["data_parallel"].size() > 1:
            fully_shard(layer, mesh=mesh["data_parallel"], reshard_after_forward=False)
    # A group's fully connected layers would receive the sum of its devices' losses, its convolutions their own's.
    size = group.size()
    net.get_submodule("fc8").register_forward_hook(
        lambda layer, inputs, out: _ScaledGradient.apply(out, 1 / size)
    )
    net.get_submodule("fc6").register_forward_pre_hook(
        lambda layer, inputs: (_ScaledGradient.apply(inputs[0], float(size)),), prepend=True
    )


def clip_gradient_norm(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scales the gradients down if their common norm is above `limit`, also those of several meshes, which torch's
    `clip_grad_norm_` does not take."""
    by_mesh: dict[DeviceMesh, list[Any]] = {}
    for p in parameters:
        assert isinstance(p.grad, DTensor)
        by_mesh.setdefault(p.grad.device_mesh, []).append(p)
    norms = [get_total_norm([p.grad for p in group]).full_tensor() for group in by_mesh.values()]  # type: ignore[attr-defined]
    total = torch.linalg.vector_norm(torch.stack(norms))
    for group in by_mesh.values():
        clip_grads_with_norm_(group, limit, total)


def _parallelize(net: nn.Module, group: DeviceMesh, plan: Mapping[str, ParallelStyle]) -> None:
    parallelize_module(
        net, group, {name: style for name, style in plan.items() if hasattr(net, name)}
    )
    for layer in net.modules():
        if isinstance(layer, Dropout):
            layer.part = group.get_local_rank()


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad * ctx.factor, None
