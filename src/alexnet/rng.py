"""Random numbers that depend on a key alone: every device, and a resumed run, draws the same.

A key is made of the seed, an epoch or step, and an image's id. A draw is a hash of a key and the
number of the draw: there is no state to save or to keep in step between devices.
"""

from typing import TypeVar

import torch
from torch import Tensor

Integers = TypeVar("Integers", int, Tensor)
MASK = 0xFFFFFFFF


def make_keys(seed: int, moment: int, ids: Tensor) -> Tensor:
    """(n,) int64 keys of the images `ids` at an epoch or step."""
    return _mix(_mix(_mix(seed & MASK) + moment) ^ ids.remainder(1 << 32))


def draw_uniform(keys: Tensor, first: int, count: int) -> Tensor:
    """(n, count) float32 in [0, 1): for each key, `count` draws from the one numbered `first`."""
    numbers = torch.arange(first + 1, first + count + 1, device=keys.device)
    columns = _mix(numbers * 0x9E3779B9)  # 2^32 / golden ratio: spreads neighboring numbers
    return (_mix(keys[:, None] ^ columns) >> 8) * 2.0**-24  # float32 has 24 bits


def _mix(x: Integers) -> Integers:
    """A bijection of 32-bit integers, an int or a tensor of them.

    Changing one bit of the input flips half of the output's bits ("lowbias32", C. Wellons).
    """
    x = x & MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)
