"""A network over several devices: Fig. 2's towers, and the hybrid of Krizhevsky 2014.

Each is a plan, a dict from the name of a layer to a parallel style, beside a network that knows
nothing of it. Parameters become DTensors whose rows (kernels or units) are sharded over a group of
devices; for a grouped convolution such a shard is a tower. The style also says what a layer gathers
from the group before it runs, and what it passes on. Names and shapes of parameters do not change,
so that every strategy reads the same checkpoints.

A mesh has two dimensions: "tensor_parallel" is the group, "data_parallel" counts the groups.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, parallelize_module
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from alexnet.nets.layers import Dropout
from alexnet.nets.norms import LocalResponseNorm


class ColwiseConvolution(ParallelStyle):
    """A convolution whose kernels are sharded, like `ColwiseParallel` for linear layers.

    With `gather` it sees the maps of the whole group, otherwise only those of its own device.
    """

    def __init__(self, *, gather: bool = False):
        super().__init__()
        self.gather = gather

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, value in list(module.named_parameters(recurse=False)):
            shards = distribute_tensor(value, device_mesh, [Shard(0)])
            module.register_parameter(name, nn.Parameter(shards))
        conv = cast(nn.Conv2d, module)
        module.forward = partial(_convolve, conv, device_mesh if self.gather else None)
        return module


# Layers that Fig. 2 connects to both towers gather their maps or units.
FIG_2: dict[str, ParallelStyle] = {
    "conv1": ColwiseConvolution(),
    "conv2": ColwiseConvolution(),
    "conv3": ColwiseConvolution(gather=True),
    "conv4": ColwiseConvolution(),
    "conv5": ColwiseConvolution(),
    "conv6": ColwiseConvolution(gather=True),
    "fc6": ColwiseParallel(input_layouts=Shard(1)),
    "fc7": ColwiseParallel(input_layouts=Shard(1)),
    "fc8": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
}
# fc6 gathers the images of the group, fc8 returns to each device the logits of its own.
KRIZHEVSKY_2014: dict[str, ParallelStyle] = {
    "fc6": ColwiseParallel(input_layouts=Shard(0)),
    "fc7": ColwiseParallel(input_layouts=Shard(1)),
    "fc8": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(0)),
}


def parallelize_towers(net: nn.Module, mesh: DeviceMesh) -> None:
    """Shards every layer over each group, and replicates that over the groups."""
    group = mesh["tensor_parallel"]
    _apply_plan(net, group, FIG_2)
    for layer in net.modules():
        if isinstance(layer, LocalResponseNorm):
            layer.groups //= group.size()  # a device normalizes its own towers only
    if mesh["data_parallel"].size() > 1:
        fully_shard(net, mesh=mesh["data_parallel"], reshard_after_forward=False)


def parallelize_hybrid(net: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the fully connected layers over each group, and replicates the convolutions."""
    group = mesh["tensor_parallel"]
    _apply_plan(net, group, KRIZHEVSKY_2014)
    # fully_shard does what DDP does for plain tensors: it averages the gradients over a mesh.
    world = init_device_mesh(mesh.device_type, (dist.get_world_size(),), mesh_dim_names=("world",))
    for name, layer in net.named_children():
        if name.startswith("conv"):
            fully_shard(layer, mesh=world, reshard_after_forward=False)
        elif name.startswith("fc") and mesh["data_parallel"].size() > 1:
            fully_shard(layer, mesh=mesh["data_parallel"], reshard_after_forward=False)
    _average_group_losses(net, group.size())


def clip_gradient_norm(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scales the gradients down if their total norm exceeds `limit`.

    torch's `clip_grad_norm_` does not take parameters of several meshes.
    """
    by_mesh: dict[DeviceMesh, list[nn.Parameter]] = {}
    for parameter in parameters:
        mesh = cast(DTensor, parameter.grad).device_mesh
        by_mesh.setdefault(mesh, []).append(parameter)
    norms = [_measure_gradient(group) for group in by_mesh.values()]
    total = torch.linalg.vector_norm(torch.stack(norms))
    for group in by_mesh.values():
        clip_grads_with_norm_(group, limit, total)


def _measure_gradient(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of the gradients of one mesh."""
    gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
    return cast(DTensor, get_total_norm(gradients)).full_tensor()


def _convolve(conv: nn.Conv2d, gather_over: DeviceMesh | None, x: Tensor) -> Tensor:
    """The convolution by this device's kernels.

    On local tensors, as DTensor has no convolution with sharded kernels: torch 2.15 silently
    computes wrong ones.
    """
    if gather_over:
        x = _gather_maps(x, gather_over)
    weight = cast(DTensor, conv.weight).to_local()
    bias = cast(DTensor, conv.bias).to_local()
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, groups)


def _gather_maps(x: Tensor, group: DeviceMesh) -> Tensor:
    """The maps of all devices of the group; backward, the sum of their gradients."""
    if torch.is_autocast_enabled(x.device.type):
        # The largest message of all, and a norm returns float32.
        x = x.to(torch.get_autocast_dtype(x.device.type))
    sharded = DTensor.from_local(x, group, [Shard(1)], run_check=False)
    gathered = sharded.redistribute(placements=[Replicate()])
    return gathered.to_local(grad_placements=[Partial()])


def _apply_plan(net: nn.Module, group: DeviceMesh, plan: Mapping[str, ParallelStyle]) -> None:
    present = {name: style for name, style in plan.items() if hasattr(net, name)}
    parallelize_module(net, group, present)
    for layer in net.modules():
        if isinstance(layer, Dropout):
            layer.shard = group.get_local_rank()


def _average_group_losses(net: nn.Module, group_size: int) -> None:
    """Gives a group's fully connected layers the gradient of the mean of its devices' losses.

    They would receive that of the sum. The convolutions receive that of their own device's loss.
    """

    def shrink_gradient(layer: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        return _scale_gradient(logits, 1 / group_size)

    def restore_gradient(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (_scale_gradient(inputs[0], float(group_size)),)

    net.get_submodule("fc8").register_forward_hook(shrink_gradient)
    net.get_submodule("fc6").register_forward_pre_hook(restore_gradient, prepend=True)


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    y: Tensor = _ScaledGradient.apply(x, factor)
    return y


class _Context(FunctionCtx):
    factor: float


class _ScaledGradient(Function):
    """The identity, whose gradient is multiplied by `factor`."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None
