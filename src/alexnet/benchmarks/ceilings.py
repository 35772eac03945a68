"""The most that this device can do: the speeds of a large matrix product and of a large copy."""

import torch

from alexnet.benchmarks.candidate import COPY, MATMUL, Candidate
from alexnet.devices import choose_device


def wait_for_device() -> None:
    """Waits until the GPU has done its work; a CPU is done when a call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def list_ceilings(dtype: torch.dtype) -> list[Candidate]:
    """The two ceilings, the product in the precision in which networks multiply."""
    device = choose_device("auto")
    # Large enough that starting the work takes no time beside it, and that no cache holds it.
    side = 2048
    repeats = 4
    copied_bytes = 1 << 27
    if device.type == "cuda":
        side = 8192
        repeats = 10
        copied_bytes = 1 << 30
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn_like(left)
    product = torch.empty_like(left)
    source = torch.ones(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def multiply() -> int:
        for _ in range(repeats):
            torch.mm(left, right, out=product)
        wait_for_device()
        return repeats * 2 * side**3

    def copy() -> int:
        for _ in range(repeats):
            target.copy_(source)
        wait_for_device()
        return repeats * 2 * copied_bytes  # each is read and written

    return [Candidate(MATMUL, multiply), Candidate(COPY, copy)]
