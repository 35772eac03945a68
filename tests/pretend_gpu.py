"""A GPU made of the CPU: `python tests/pretend_gpu.py train.py …` runs a script on it.

A tensor on the device `pretend` wraps one of the CPU, which holds its numbers. Every operation that
gets such tensors is computed on the CPU, and its results are wrapped again. As on a real GPU, an
operation fails if it gets tensors of both the device and the host; so a run on it shows that the
code never mixes the two.
"""

import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from alexnet.data import loader
from alexnet.data.loader import Loader, RawBatch
from alexnet.parallel.strategies import DataParallel

_setup_privateuseone_for_python_backend("pretend")
DEVICE = torch.device("pretend:0")
CPU = torch.device("cpu")
COPIES = ("aten::_copy_from", "aten::copy_", "aten::_to_copy")  # they may mix device and host
ON_CPU = {"device": CPU, "pin_memory": False}  # what arguments of these names become


class DeviceTensor(Tensor):
    """A tensor on the device; `numbers` is the tensor of the CPU that it wraps."""

    numbers: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "DeviceTensor":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DEVICE,
        )
        tensor.numbers = numbers
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.name() == "aten::_has_compatible_shallow_copy_type":
            return False  # a module that moves to the device gets new parameters
        return compute(func, *args, **(kwargs or {}))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.numbers.__reduce_ex__(protocol)  # in a file the device does not matter


def compute(func: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Computes an operation of the device on the CPU."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if func.name() not in COPIES:
        _refuse_host_tensors(func, tensors)
    returns_to_host = kwargs.get("device") == CPU
    kwargs = {name: ON_CPU.get(name, value) for name, value in kwargs.items()}
    args, kwargs = tree_map(_unwrap, (args, kwargs))
    result = func(*args, **kwargs)
    if returns_to_host:
        return result
    # An operation in place returns its argument, which must stay the same object.
    wrappers = {id(x.numbers): x for x in tensors if isinstance(x, DeviceTensor)}
    return tree_map(lambda value: wrappers.get(id(value), _wrap(value)), result)


def _refuse_host_tensors(func: torch._ops.OpOverload, tensors: list[Tensor]) -> None:
    """As on a GPU, tensors without dimensions may lie on either."""
    for tensor in tensors:
        if not isinstance(tensor, DeviceTensor) and tensor.dim() > 0:
            raise RuntimeError(f"{func.name()}: tensors on both the device and the host")


def _wrap(value: Any) -> Any:
    return DeviceTensor(value) if isinstance(value, Tensor) else value


def _unwrap(value: Any) -> Any:
    return value.numbers if isinstance(value, DeviceTensor) else value


# What the project and Lightning call differently for a device made in Python.


def make_tensor(
    *args: Any, device: Any = None, original: Callable[..., Tensor] = torch.tensor, **kwargs: Any
) -> Tensor:
    """torch.tensor, which can't make a tensor on such a device."""
    return original(*args, **kwargs).to(device)


def upload_batches(batches: Iterator[RawBatch], device: torch.device) -> Iterator[RawBatch]:
    for batch in batches:
        yield RawBatch(*[tensor.to(device) for tensor in batch])


def initialize_loader(
    self: Loader,
    *args: Any,
    original: Callable[..., None] = Loader.__init__,
    **kwargs: Any,
) -> None:
    original(self, *args, **kwargs)
    self.pin_memory = self.device.type == "pretend"  # so that its batches are uploaded


def take_unpinned_buffer(self: Loader, rows: int) -> Tensor:
    return torch.empty(rows, self.split.size, self.split.size, 3, dtype=torch.uint8)


def install() -> torch.library.Library:
    """Makes the device known to torch, as long as the library lives, the loader and Lightning."""
    library = torch.library.Library("_", "IMPL")
    library.fallback(compute, "PrivateUse1")
    torch.tensor = make_tensor
    loader.upload_batches = upload_batches
    Loader.__init__ = initialize_loader  # type: ignore[method-assign]
    Loader._take_buffer = take_unpinned_buffer  # type: ignore[method-assign]
    DataParallel.build_lightning_strategy = (  # type: ignore[method-assign]
        lambda self, world_size: SingleDeviceStrategy(DEVICE)
    )
    CPUAccelerator.setup_device = lambda self, device: None  # type: ignore[method-assign]
    return library


if __name__ == "__main__":
    library = install()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
