"""Whole training steps on a batch that lies on the device: our net against the same net with torch's norms, without
norms, and torchvision's alexnet, each eager and compiled."""

import logging
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._inductor import compile_fx, metrics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from alexnet import rng
from alexnet.benchmarks.run import COPY, MATMUL, Candidate
from alexnet.nets.layers import Dropout, LocalResponseNorm, SpatialResponseNorm, compile_network

CLASSES = 1000


def list_candidates(cfg: DictConfig) -> list[Candidate]:
    train = configuration(cfg)
    torch._dynamo.config.recompile_limit = 64  # of one function, and all nets share theirs
    makers: dict[str, Callable[[], nn.Module]] = {
        "ours": partial(instantiate, train.model),
        "no norms": lambda: with_norms(instantiate(train.model), lambda norm: nn.Identity()),
        "torchvision": lambda: torchvision.models.alexnet(num_classes=CLASSES),
        "F.lrn": lambda: with_norms(instantiate(train.model), TorchNorm),
    }
    modes = ["compiled", "eager"]
    if device().type == "cuda":
        makers = {"fused": partial(built, train, True), **makers}
        modes.insert(0, "graphs")
    found = []
    for mode in modes:
        for name, make in makers.items():
            steps = Steps(make(), train, mode)
            without = f"no norms, {mode}" if name in ("fused", "ours", "F.lrn") else None
            found.append(Candidate(f"{name}, {mode}", steps, steps.cost, without))
    return [*ceilings(train), *found]


def built(train: DictConfig, fused: bool) -> nn.Module:
    net = instantiate(train.model)
    if fused:
        from alexnet.nets.fused import fuse

        fuse(net)
    return net


def configuration(cfg: DictConfig) -> DictConfig:
    """That of `train.py` with the benchmark's choices."""
    chosen = {
        "model": cfg.net,
        "data.batch_size": cfg.batch_size,
        "trainer.precision": cfg.precision,
    }
    fixed = {
        "data.folder": cfg.folder,
        "data.make": "null",
        "model.num_classes": CLASSES,
        "compile": cfg.compile,
    }
    fixed |= {"fused": cfg.fused, "trainer.max_epochs": 1000000, "trainer.limit_val_batches": 0}
    options = [f"{key}={value}" for key, value in (chosen | fixed).items()]
    unneeded = [f"~callbacks.{name}" for name in ("best", "last", "figures", "progress")]
    return compose(
        "train", [*options, "schedule=steps", *unneeded, "+trainer.enable_checkpointing=false"]
    )


class TorchNorm(nn.Module):
    """A response norm by torch's function, on each tower."""

    def __init__(self, norm: LocalResponseNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        towers = x.chunk(self.norm.groups, 1)
        return torch.cat(
            [
                F.local_response_norm(t, self.norm.size, self.norm.alpha, 0.75, self.norm.k)
                for t in towers
            ],
            1,
        )


def with_norms(net: nn.Module, make: Callable[[LocalResponseNorm], nn.Module]) -> nn.Module:
    """The net with other cross-map norms, and without spatial ones."""
    for name, layer in list(net.named_children()):
        if isinstance(layer, LocalResponseNorm):
            net.set_submodule(name, make(layer))
        elif isinstance(layer, SpatialResponseNorm):
            net.set_submodule(name, nn.Identity())
    return net


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def finish() -> None:
    """Waits for the GPU; on a CPU work is done when it returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Steps:
    """Training steps as `train.py` takes them: forward, loss, backward and the optimizer, in the run's precision."""

    def __init__(self, net: nn.Module, train: DictConfig, mode: str):
        self.net = net.to(device()).to(memory_format=torch.channels_last)
        self.optimizer = instantiate(train.optimizer)(self.net)
        self.mixed = train.trainer.precision == "bf16-mixed"
        n, crop = train.data.batch_size, train.augment.crop
        images = torch.randn(n, 3, crop, crop, device=device()) * 50
        self.images = images.to(
            torch.bfloat16 if self.mixed else torch.float32, memory_format=torch.channels_last
        )
        self.ids = torch.arange(n, device=device())
        self.labels = self.ids % CLASSES
        self.taken, self.count = 0, 30 if device().type == "cuda" else 1
        self.forward_flop, unneeded = self._flop()
        self.flop = 3 * self.forward_flop - unneeded
        if mode != "eager":  # graphs are CUDA's
            compile_network(self.net, "reduce-overhead" if mode == "graphs" else None)
        self.bytes = (eager_bytes if mode == "eager" else compiled_bytes)(self.learn) + eager_bytes(
            self.update
        )

    def __call__(self) -> int:
        for _ in range(self.count):
            self.step()
        finish()
        return self.count * len(self.images)

    def step(self) -> None:
        keys = rng.make_keys(0, self.taken, self.ids)
        for layer in self.net.modules():
            if isinstance(layer, Dropout):
                layer.keys = keys
        self.learn()
        self.update()
        self.taken += 1

    def learn(self) -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=self.mixed):
            loss = F.cross_entropy(self.net(self.images), self.labels)
        loss.backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def cost(self) -> tuple[float, float]:
        """FLOP of convolutions and matrix products, and bytes that operations read and write, a image."""
        return self.flop / len(self.images), self.bytes / len(self.images)

    def _flop(self) -> tuple[int, int]:
        """Of the forward pass, a third of all, and of the gradient by the images, which nobody needs."""
        with FlopCounterMode(display=False) as whole, torch.no_grad():
            self.net(self.images.float())
        first = next(layer for layer in self.net.modules() if isinstance(layer, nn.Conv2d))
        with FlopCounterMode(display=False) as part, torch.no_grad():
            first(F.pad(self.images.float(), (0, 3, 0, 3)))
        return whole.get_total_flops(), part.get_total_flops()


def eager_bytes(work: Callable[[], None]) -> int:
    with Traffic() as traffic:
        work()
    return traffic.bytes


def compiled_bytes(work: Callable[[], None]) -> int:
    """The compiler's own count, of what it compiles now."""
    compile_fx.inductor_metrics_log.setLevel(logging.INFO)  # else it does not count
    compile_fx.inductor_metrics_log.propagate = False
    before = metrics.num_bytes_accessed
    with torch._inductor.config.patch(force_disable_caches=True):
        work()
    return metrics.num_bytes_accessed - before


class Traffic(TorchDispatchMode):
    """Counts the bytes of all tensors that operations take and give; views move nothing."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = torch.utils._pytree.tree_leaves((args, kwargs, out))
            self.bytes += sum(
                t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor)
            )
        return out


def ceilings(train: DictConfig) -> list[Candidate]:
    """What this device does at best, in the run's precision."""
    mixed, big = train.trainer.precision == "bf16-mixed", device().type == "cuda"
    side, repeat = (8192, 10) if big else (2048, 4)
    a = torch.randn(side, side, device=device(), dtype=torch.bfloat16 if mixed else torch.float32)
    b, out = torch.randn_like(a), torch.empty_like(a)
    source = torch.ones(1 << (30 if big else 27), dtype=torch.uint8, device=device())
    target = torch.empty_like(source)

    def matmul() -> int:
        for _ in range(repeat):
            torch.mm(a, b, out=out)
        finish()
        return repeat * 2 * side**3

    def copy() -> int:
        for _ in range(repeat):
            target.copy_(source)
        finish()
        return repeat * 2 * source.numel()

    return [Candidate(MATMUL, matmul), Candidate(COPY, copy)]
