"""Counts what a piece of work costs: floating point operations and bytes of memory traffic."""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import compile_fx, metrics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def count_forward_flop(net: nn.Module, images: Tensor) -> int:
    """FLOP of all convolutions and matrix products of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)
    return int(counter.get_total_flops())


def count_first_layer_flop(net: nn.Module, images: Tensor) -> int:
    """FLOP of the first convolution's forward pass, or of its gradient by the images."""
    first = next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    return count_forward_flop(first, F.pad(images, (0, 3, 0, 3)))  # padded as by EdgePadding


def count_eager_bytes(work: Callable[[], None]) -> int:
    """Bytes that each operation reads and writes."""
    counter = TrafficCounter()  # type: ignore[no-untyped-call]
    with counter:
        work()
    return counter.bytes


def count_compiled_bytes(work: Callable[[], None]) -> int:
    """The compiler's own count, for what it compiles during `work`."""
    compile_fx.inductor_metrics_log.setLevel(logging.INFO)  # it counts at this level only
    compile_fx.inductor_metrics_log.propagate = False
    before = metrics.num_bytes_accessed
    # A graph from the cache would not be counted again.
    with torch._inductor.config.patch(force_disable_caches=True):
        work()
    return int(metrics.num_bytes_accessed - before)


class TrafficCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes of all tensors that operations take and return; views move none."""

    bytes: int = 0

    # torch names the arguments.
    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Called for each operation, after autograd and autocast have done theirs.
        result = func(*args, **(kwargs or {}))
        if not func.is_view:  # a view is other sizes and strides over the same memory
            for leaf in torch.utils._pytree.tree_leaves((args, kwargs, result)):
                if isinstance(leaf, Tensor):
                    self.bytes += leaf.numel() * leaf.element_size()
        return result
