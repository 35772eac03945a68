"""Every form of a network against one device, in float64: loss, gradients and parameters of ten steps, and the mistakes
that only gradients show."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from conftest import ACCELERATOR, need
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet.nets.alexnet import AlexNet
from alexnet.parallel import cost, towers
from alexnet.parallel.strategies import DataParallel, FullySharded, Hybrid, Towers
from alexnet.training.optim import build_sgd

FORMS = {
    "ddp": (DataParallel(False, 60), 2, 1),  # form, processes, devices of a group
    "fsdp": (FullySharded(60), 2, 1),
    "towers": (Towers(2, 60), 2, 2),
    "two pairs of towers": (Towers(2, 60), 4, 2),
    "hybrid": (Hybrid(2, 60), 2, 2),
    "two pairs of hybrid": (Hybrid(2, 60), 4, 2),
    "fsdp on one": (FullySharded(60), 1, 1),
    "towers on one": (Towers(1, 60), 1, 1),
    "hybrid on one": (Hybrid(1, 60), 1, 1),
}
KIND = "cuda" if ACCELERATOR == "gpu" else "cpu"
Trained = dict[str, Tensor]
LIMIT = 0.05  # of the gradients' norm, where they are clipped


def build(**kwargs) -> AlexNet:
    """Activations of a hundred, where a norm's window over the towers' border is seen."""
    torch.manual_seed(0)
    return AlexNet(num_classes=7, width=0.125, crop=67, dropout=0.0, init="kaiming", **kwargs).to(
        KIND, torch.float64
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 3, 67, 67, generator=generator).double() * 100
    return images.to(KIND), (torch.arange(8) % 7).to(KIND)


def train(net: nn.Module, share: slice, average, clip=lambda parameters: None) -> Trained:
    """Ten steps: each one's loss, the first one's gradients, the last parameters."""
    seen: Trained = {}
    optimizer = build_sgd(
        net, lr=1e-6, momentum=0.9, weight_decay=5e-4, bias_lr_factor=2.0, decay_biases=False
    )
    for step in range(10):
        images, labels = (t[share] for t in batch(step))
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        clip(net.parameters())
        seen[f"loss {step}"] = average(loss.detach()).cpu()
        if step == 0:
            seen |= {f"gradient of {name}": whole(p.grad) for name, p in net.named_parameters()}
        optimizer.step()
    return {k.replace("module.", ""): v for k, v in seen.items()} | {
        f"value of {name.removeprefix('module.')}": whole(p.detach())
        for name, p in net.named_parameters()
    }


def whole(value: Tensor | None) -> Tensor:
    if value is None:
        return torch.zeros(())
    return (value.full_tensor() if isinstance(value, DTensor) else value).to("cpu", copy=True)


def join(rank: int, name: str, folder: Path) -> DeviceMesh:
    _, world_size, group = FORMS[name]
    torch.set_num_threads(1)
    if KIND == "cuda":
        torch.cuda.set_device(rank)
    store = dist.FileStore(str(folder / "rendezvous"), world_size)
    dist.init_process_group(
        "nccl" if KIND == "cuda" else "gloo", rank=rank, world_size=world_size, store=store
    )
    return init_device_mesh(
        KIND, (world_size // group, group), mesh_dim_names=("data_parallel", "tensor_parallel")
    )


def worker(rank: int, name: str, mistake: str, folder: Path) -> None:
    form, world_size, group = FORMS[name]
    mesh = join(rank, name, folder)
    net: nn.Module = build()
    MISTAKES[mistake](net)
    if name == "ddp":
        net = DistributedDataParallel(net)
    else:
        form.split(net, mesh)
    rows = 8 // form.shares(world_size)
    first = (rank // group if isinstance(form, Towers) else rank) * rows

    def average(loss: Tensor) -> Tensor:
        dist.all_reduce(loss)
        return loss / world_size

    clip = (
        partial(towers.clip_gradient_norm, limit=LIMIT)
        if mistake == "none, clipped"
        else lambda parameters: None
    )
    seen = train(net, slice(first, first + rows), average, clip)
    if rank == 0:
        torch.save(seen, folder / "seen.pt")
    dist.barrier()
    os._exit(0)  # gloo's own end aborts now and then


def spread(name: str, folder: Path, mistake: str = "none") -> Trained:
    need(FORMS[name][1])
    mp.spawn(worker, (name, mistake, folder), FORMS[name][1])
    return torch.load(folder / "seen.pt")


@pytest.fixture(scope="module")
def alone() -> Trained:
    return train(build(), slice(None), lambda loss: loss)


def greatest_difference(seen: Trained, expected: Trained, what: str) -> float:
    """Of all tensors of a kind, relative to each one's greatest element."""
    assert seen.keys() == expected.keys()
    return max(
        float((seen[k] - v).abs().max() / v.abs().max())
        for k, v in expected.items()
        if k.startswith(what)
    )


@pytest.mark.parametrize("name", FORMS)
def test_ten_steps_are_those_of_one_device(name, alone, tmp_path):
    seen = spread(name, tmp_path)
    assert greatest_difference(seen, alone, "loss") < 1e-12
    assert greatest_difference(seen, alone, "gradient") < 1e-12
    assert greatest_difference(seen, alone, "value") < 1e-12


@pytest.mark.parametrize("name", ["fsdp", "two pairs of towers", "two pairs of hybrid"])
def test_clipped_gradients_are_those_of_one_device(name, alone, tmp_path):
    clipped = train(
        build(), slice(None), lambda loss: loss, partial(nn.utils.clip_grad_norm_, max_norm=LIMIT)
    )
    assert greatest_difference(clipped, alone, "gradient") > 0.5
    seen = spread(name, tmp_path, "none, clipped")
    assert greatest_difference(seen, clipped, "gradient") < 1e-12
    assert greatest_difference(seen, clipped, "value") < 1e-12


def stop_gradient(layer: str):
    """As if what `layer` gathers had no backward."""
    return lambda net: net.get_submodule(layer).register_forward_pre_hook(
        lambda _, inputs: (inputs[0].detach(),)
    )


def forget(name: str, instead):
    return lambda net: setattr(towers, name, instead)


MISTAKES = {
    "none": lambda net: None,
    "none, clipped": lambda net: None,
    "gradients of conv3's gather not summed": forget("Partial", towers.Replicate),
    "hybrid's factors": forget(
        "_ScaledGradient", type("Plain", (), {"apply": staticmethod(lambda x, factor: x)})
    ),
    **{
        f"{layer}'s gather without backward": stop_gradient(layer)
        for layer in ("conv3", "fc6", "fc7", "fc8")
    },
}


@pytest.mark.parametrize("mistake", [name for name in MISTAKES if "none" not in name])
def test_a_mistake_shows_in_gradients(mistake, alone, tmp_path):
    seen = spread("hybrid" if "hybrid" in mistake else "towers", tmp_path, mistake)
    assert abs(seen["loss 0"] - alone["loss 0"]) < 1e-12 * abs(alone["loss 0"])
    assert greatest_difference(seen, alone, "gradient") > 0.05


def test_a_norm_across_the_towers_border_shows(alone):
    across = train(build(norm_across_towers=True), slice(None), lambda loss: loss)
    assert greatest_difference(across, alone, "loss 0") > 1e-6


class Spy(TorchDispatchMode):
    """Counts the numbers that this process sends in collectives, were they rings."""

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


def spied(rank: int, name: str, folder: Path) -> None:
    form, world_size, _ = FORMS[name]
    mesh = join(rank, name, folder)
    net = AlexNet().to(KIND)
    form.split(net, mesh)
    images = 2 if name != "towers" else 2 * world_size  # of a group together
    with Spy() as spy:
        net(torch.randn(images, 3, 224, 224, device=KIND)).sum().backward()
    if rank == 0:
        torch.save(spy.sent, folder / "sent.pt")
    dist.barrier()
    os._exit(0)


@pytest.mark.parametrize("name", ["fsdp", "towers", "hybrid"])
def test_what_is_sent_is_what_was_calculated(name, tmp_path):
    need(2)
    mp.spawn(spied, (name, tmp_path), 2)
    assert torch.load(tmp_path / "sent.pt") == pytest.approx(
        sum(cost.FORMS[name](2, 2, 2)), rel=1e-3
    )
