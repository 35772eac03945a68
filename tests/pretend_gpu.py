"""A GPU made of the CPU: `python tests/pretend_gpu.py train.py …` runs a door on it. As on a real one, an operation
fails that is given tensors of both the device and the host."""

import runpy
import sys
from collections.abc import Iterator
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
COPIES = ("aten::_copy_from", "aten::copy_", "aten::_to_copy")


class There(Tensor):
    """A tensor on the device; `here` holds its numbers."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor):
        layout = {
            "strides": here.stride(),
            "storage_offset": here.storage_offset(),
            "dtype": here.dtype,
        }
        made = Tensor._make_wrapper_subclass(cls, here.size(), device=DEVICE, **layout)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func.name() == "aten::_has_compatible_shallow_copy_type":
            return False  # a module that moves gets new parameters
        return _compute(func, *args, **(kwargs or {}))

    def __reduce_ex__(self, protocol):
        return self.here.__reduce_ex__(protocol)  # in a file the device does not matter


def _compute(func: Any, *args: Any, **kwargs: Any) -> Any:
    """On the CPU, if all tensors are on the device; 0-dimensional ones may be anywhere."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    if func.name() not in COPIES and any(not isinstance(t, There) and t.dim() for t in tensors):
        raise RuntimeError(f"{func.name()}: tensors on both the device and the host")
    to_host = kwargs.get("device") == torch.device("cpu")
    on_host = {"device": torch.device("cpu"), "pin_memory": False}
    kwargs = {name: on_host.get(name, value) for name, value in kwargs.items()}
    args, kwargs = tree_map(lambda t: t.here if isinstance(t, There) else t, (args, kwargs))
    out = func(*args, **kwargs)
    written = {id(t.here): t for t in tensors if isinstance(t, There)}  # by an operation in place
    return out if to_host else tree_map(lambda t: written.get(id(t), _there(t)), out)


def _there(value: Any) -> Any:
    return There(value) if isinstance(value, Tensor) else value


def _tensor(*args: Any, device: Any = None, make=torch.tensor, **kwargs: Any) -> Tensor:
    """torch.tensor, which can't make one on such a device."""
    return make(*args, **kwargs).to(device)


def _uploaded(batches: Iterator[RawBatch], device: torch.device) -> Iterator[RawBatch]:
    for batch in batches:
        yield RawBatch(*(t.to(device) for t in batch))


def _load_there(self: Loader, *args: Any, plain=Loader.__init__) -> None:
    plain(self, *args)
    self.pin_memory = self.device.type == "pretend"


def _unpinned(self: Loader, rows: int) -> Tensor:
    return torch.empty(rows, self.split.size, self.split.size, 3, dtype=torch.uint8)


if __name__ == "__main__":
    library = torch.library.Library("_", "IMPL")
    library.fallback(_compute, "PrivateUse1")
    torch.tensor = _tensor
    loader.upload_batches, Loader.__init__, Loader._take_buffer = _uploaded, _load_there, _unpinned
    DataParallel.strategy = lambda self, world_size: SingleDeviceStrategy(DEVICE)
    CPUAccelerator.setup_device = lambda self, device: None
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
