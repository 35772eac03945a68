"""Every parallel strategy against one device, in float64: loss, gradients and parameters.

Ten steps must agree to 1e-12. Planted mistakes, which leave the loss as it is, must show in the
gradients.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from conftest import ACCELERATOR
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet.nets.alexnet import AlexNet
from alexnet.parallel import cost, tensor_parallel
from alexnet.parallel.strategies import (
    DataParallel,
    FullyShardedParallel,
    HybridParallel,
    ParallelStrategy,
    TowerParallel,
)
from alexnet.training.optim import build_sgd


class Case(NamedTuple):
    strategy: ParallelStrategy
    processes: int
    group_size: int


CASES = {
    "ddp": Case(DataParallel(ddp_on_one_device=False, timeout=60), 2, 1),
    "fsdp": Case(FullyShardedParallel(timeout=60), 2, 1),
    "towers": Case(TowerParallel(group_size=2, timeout=60), 2, 2),
    "two pairs of towers": Case(TowerParallel(group_size=2, timeout=60), 4, 2),
    "hybrid": Case(HybridParallel(group_size=2, timeout=60), 2, 2),
    "two pairs of hybrid": Case(HybridParallel(group_size=2, timeout=60), 4, 2),
    "fsdp on one": Case(FullyShardedParallel(timeout=60), 1, 1),
    "towers on one": Case(TowerParallel(group_size=1, timeout=60), 1, 1),
    "hybrid on one": Case(HybridParallel(group_size=1, timeout=60), 1, 1),
}
DEVICE = "cuda" if ACCELERATOR == "gpu" else "cpu"
BACKEND = "nccl" if ACCELERATOR == "gpu" else "gloo"
BATCH_SIZE = 8
GRADIENT_LIMIT = 0.05  # of their norm, where gradients are clipped
Record = dict[str, Tensor]  # of a training run: losses, gradients and parameters
Clip = Callable[[Iterable[nn.Parameter]], object]


def build_network(*, norm_across_towers: bool = False) -> AlexNet:
    """Activations of a hundred, at which a norm that crosses the towers' border shows."""
    torch.manual_seed(0)
    net = AlexNet(
        num_classes=7,
        width=0.125,
        crop=67,
        dropout=0.0,
        init="kaiming",
        norm_across_towers=norm_across_towers,
    )
    return net.to(DEVICE, torch.float64)


def draw_batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH_SIZE, 3, 67, 67, generator=generator).double() * 100
    labels = torch.arange(BATCH_SIZE) % 7
    return images.to(DEVICE), labels.to(DEVICE)


def average_loss(loss: Tensor) -> Tensor:
    """The mean over all processes."""
    if not dist.is_initialized():
        return loss
    dist.all_reduce(loss)
    return loss / dist.get_world_size()


def train(net: nn.Module, shard: slice, clip: Clip | None = None) -> Record:
    """Ten steps on the rows `shard` of each batch: losses, first gradients, last parameters."""
    record: Record = {}
    optimizer = build_sgd(
        net, lr=1e-6, momentum=0.9, weight_decay=5e-4, bias_lr_factor=2.0, decay_biases=False
    )
    for step in range(10):
        images, labels = draw_batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images[shard]), labels[shard])
        loss.backward()
        if clip:
            clip(net.parameters())
        record[f"loss {step}"] = average_loss(loss.detach()).cpu()
        if step == 0:
            for name, parameter in net.named_parameters():
                record[f"gradient of {name}"] = copy_whole(parameter.grad)
        optimizer.step()
    for name, parameter in net.named_parameters():
        record[f"value of {name}"] = copy_whole(parameter.detach())
    # DistributedDataParallel puts "module." before each name.
    return {name.replace("module.", ""): value for name, value in record.items()}


def copy_whole(value: Tensor | None) -> Tensor:
    """A copy of a tensor's shards from all devices; 0 if it has none."""
    if value is None:
        return torch.zeros(())
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.to("cpu", copy=True)


def train_on_one_device(clip: Clip | None = None) -> Record:
    return train(build_network(), slice(None), clip)


@pytest.fixture(scope="module")
def one_device() -> Record:
    return train_on_one_device()


def join_processes(rank: int, case: Case, folder: Path) -> DeviceMesh:
    torch.set_num_threads(1)
    if DEVICE == "cuda":
        torch.cuda.set_device(rank)
    store = dist.FileStore(str(folder / "rendezvous"), case.processes)
    dist.init_process_group(BACKEND, rank=rank, world_size=case.processes, store=store)
    return init_device_mesh(
        DEVICE,
        (case.processes // case.group_size, case.group_size),
        mesh_dim_names=("data_parallel", "tensor_parallel"),
    )


def leave_processes() -> None:
    dist.barrier()
    os._exit(0)  # gloo's own shutdown aborts now and then


def run_training(rank: int, name: str, mistake: str, is_clipped: bool, folder: Path) -> None:
    """One of the processes."""
    case = CASES[name]
    mesh = join_processes(rank, case, folder)
    net: nn.Module = build_network()
    if mistake:
        MISTAKES[mistake](net)
    if name == "ddp":
        net = DistributedDataParallel(net)  # Lightning's part
    else:
        case.strategy.parallelize(net, mesh)
    # The devices of a group of towers see the same shard.
    shards = case.strategy.count_batch_shards(case.processes)
    devices_of_shard = case.processes // shards
    rows = BATCH_SIZE // shards
    first = rank // devices_of_shard * rows
    clip = partial(tensor_parallel.clip_gradient_norm, limit=GRADIENT_LIMIT)
    record = train(net, slice(first, first + rows), clip if is_clipped else None)
    if rank == 0:
        torch.save(record, folder / "record.pt")
    leave_processes()


def require_gpus(count: int) -> None:
    if ACCELERATOR == "gpu" and torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} GPUs")


def train_by(name: str, folder: Path, *, mistake: str = "", is_clipped: bool = False) -> Record:
    require_gpus(CASES[name].processes)
    mp.spawn(run_training, (name, mistake, is_clipped, folder), CASES[name].processes)
    return torch.load(folder / "record.pt")


def compare(record: Record, expected: Record, kind: str) -> float:
    """The greatest difference of all tensors of a kind, relative to each one's greatest element."""
    assert record.keys() == expected.keys()
    differences = []
    for name, value in expected.items():
        if name.startswith(kind):
            difference = (record[name] - value).abs().max() / value.abs().max()
            differences.append(float(difference))
    return max(differences)


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_equal_those_of_one_device(name, one_device, tmp_path):
    record = train_by(name, tmp_path)
    assert compare(record, one_device, "loss") < 1e-12
    assert compare(record, one_device, "gradient") < 1e-12
    assert compare(record, one_device, "value") < 1e-12


@pytest.mark.parametrize("name", ["fsdp", "two pairs of towers", "two pairs of hybrid"])
def test_clipped_gradients_equal_those_of_one_device(name, one_device, tmp_path):
    clip = partial(nn.utils.clip_grad_norm_, max_norm=GRADIENT_LIMIT)
    expected = train_on_one_device(clip)
    assert compare(expected, one_device, "gradient") > 0.5
    record = train_by(name, tmp_path, is_clipped=True)
    assert compare(record, expected, "gradient") < 1e-12
    assert compare(record, expected, "value") < 1e-12


def drop_gradient(layer: str, net: nn.Module) -> None:
    """As if what `layer` gathers had no backward pass."""
    submodule = net.get_submodule(layer)
    submodule.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))


def forget_to_sum(net: nn.Module) -> None:
    tensor_parallel.Partial = tensor_parallel.Replicate


def forget_to_scale(net: nn.Module) -> None:
    tensor_parallel._scale_gradient = lambda x, factor: x


# Each mistake is made before the network is parallelized, in a process of its own.
MISTAKES: dict[str, Callable[[nn.Module], None]] = {
    "gradients of conv3's gather not summed": forget_to_sum,
    "hybrid's factors": forget_to_scale,
    "conv3's gather without backward": partial(drop_gradient, "conv3"),
    "fc6's gather without backward": partial(drop_gradient, "fc6"),
    "fc7's gather without backward": partial(drop_gradient, "fc7"),
    "fc8's gather without backward": partial(drop_gradient, "fc8"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows_in_the_gradients(mistake, one_device, tmp_path):
    name = "hybrid" if "hybrid" in mistake else "towers"
    record = train_by(name, tmp_path, mistake=mistake)
    assert compare(record, one_device, "loss 0") < 1e-12
    assert compare(record, one_device, "gradient") > 0.05


def test_a_norm_across_the_towers_border_shows(one_device):
    record = train(build_network(norm_across_towers=True), slice(None))
    assert compare(record, one_device, "loss 0") > 1e-6


class CountTraffic(TorchDispatchMode):
    """Counts the numbers that this process sends in collectives, as if they ran in rings."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0.0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        name = op.name()
        if name.startswith("_c10d_functional::all_gather_into_tensor"):
            self.sent += args[0].numel() * (args[1] - 1)
        elif name.startswith("_c10d_functional::reduce_scatter_tensor"):
            self.sent += args[0].numel() * (args[2] - 1) / args[2]
        elif name.startswith("c10d::_allgather_base_"):
            self.sent += args[0].numel() - args[1].numel()
        elif name.startswith("c10d::_reduce_scatter_base_"):
            self.sent += args[1].numel() - args[0].numel()
        return out


def run_counted_step(rank: int, name: str, folder: Path) -> None:
    """One of the processes: a step of the full network."""
    case = CASES[name]
    mesh = join_processes(rank, case, folder)
    net = AlexNet().to(DEVICE)
    case.strategy.parallelize(net, mesh)
    # Two images a device; a device of a group of towers sees those of the whole group.
    images = 2 * case.processes // case.strategy.count_batch_shards(case.processes)
    with CountTraffic() as traffic:
        net(torch.randn(images, 3, 224, 224, device=DEVICE)).sum().backward()
    if rank == 0:
        torch.save(traffic.sent, folder / "sent.pt")
    leave_processes()


@pytest.mark.parametrize("name", ["fsdp", "towers", "hybrid"])
def test_traffic_is_as_calculated(name, tmp_path):
    require_gpus(2)
    mp.spawn(run_counted_step, (name, tmp_path), 2)
    traffic = cost.COUNTERS[name](devices=2, batch=2, group_size=2)
    assert torch.load(tmp_path / "sent.pt") == pytest.approx(sum(traffic), rel=1e-3)
