"""Random numbers that depend on a key alone, so that every device, and a resumed run, draws the same."""

from typing import Any

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def keys(seed: int, moment: int, ids: Tensor) -> Tensor:
    """(n,) int64 keys of the pictures `ids` at an epoch or step."""
    return _mix(_mix(_mix(seed & MASK) + moment) ^ ids.remainder(1 << 32))


def uniform(rows: Tensor, first: int, count: int) -> Tensor:
    """(n, count) float32 in [0, 1): a hash of each row's key and the columns' numbers from `first`."""
    columns = _mix(torch.arange(first + 1, first + count + 1, device=rows.device) * 0x9E3779B9)
    return (_mix(rows[:, None] ^ columns) >> 8) * 2.0**-24


def _mix(x: Any) -> Any:
    """A bijection of 32-bit integers, an int or a tensor of them, that flips
    half of the bits for each changed one ("lowbias32", C. Wellons)."""
    x = x & MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)
