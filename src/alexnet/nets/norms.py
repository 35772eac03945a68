"""Response normalization: y = x · d^-¾ with d = k + scale · Σ x², the sum running over a window.

The layers differ in the window alone: neighboring channels at one pixel (the paper's §3.3), or
neighboring pixels of one channel (only in the authors' code).

The backward pass is written out because autograd would keep every intermediate. Here only x is
kept, in its own dtype; a ReLU before the norm keeps the same tensor, so behind one the norm costs
no memory. In return d is computed twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx

# Dimensions of (n, groups, channels / groups, height, width) along which a window extends.
CHANNELS = (2,)
PIXELS = (3, 4)


class Norm(NamedTuple):
    """The window and the constants of a response norm."""

    size: int  # of the window along each of `dims`, odd; it is clipped at the borders
    groups: int  # blocks of channels that do not see one another
    dims: Sequence[int]  # CHANNELS or PIXELS
    scale: float
    k: float


class LocalResponseNorm(nn.Module):
    """Cross-map normalization (paper §3.3), within each of `groups` blocks of channels.

    The same values as `torch.nn.LocalResponseNorm(size, alpha, 0.75, k)` on each block: alpha is
    divided by `size`, as in the authors' code, and no window crosses the border of a tower.
    Computed in float32 at least.

    Shape: (n, channels, height, width), channels divisible by groups; same dtype out.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, k: float = 2.0, groups: int = 1):
        super().__init__()
        if size % 2 == 0:
            raise ValueError(
                f"LocalResponseNorm size={size} must be odd, so that the window has a center"
            )
        self.size = size
        self.alpha = alpha
        self.k = k
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        scale = self.alpha / self.size
        norm = Norm(self.size, self.groups, dims=CHANNELS, scale=scale, k=self.k)
        y: Tensor = _ResponseNorm.apply(x, norm)
        return y

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, k={self.k}, groups={self.groups}"


class SpatialResponseNorm(nn.Module):
    """The authors' extra norm in stage 2 (`rnorm` in layers-145.cfg; not in the paper).

    The window is size × size pixels of the same channel. It is clipped at the border of the image,
    while alpha is always divided by size².

    Shape: (n, channels, height, width); same dtype out.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-3, k: float = 1.0):
        super().__init__()
        self.size = size
        self.alpha = alpha
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        scale = self.alpha / self.size**2
        norm = Norm(self.size, groups=1, dims=PIXELS, scale=scale, k=self.k)
        y: Tensor = _ResponseNorm.apply(x, norm)
        return y

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, k={self.k}"


class _Context(FunctionCtx):
    norm: Norm
    saved_tensors: tuple[Tensor, ...]


class _ResponseNorm(Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, norm: Norm) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm = norm
        if x.device.type == "cpu":
            y: Tensor = normalize_by_image(x, *norm)
            return y
        return normalize(x, norm)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        (grad,) = grads
        if x.device.type == "cpu":
            return compute_gradient_by_image(x, grad, *ctx.norm), None
        return compute_gradient(x, grad, ctx.norm), None


def normalize(x: Tensor, norm: Norm) -> Tensor:
    """y = x · d^-¾."""
    wide = _widen(x)
    _, power = _compute_powers(wide, norm)
    return power.mul_(wide).to(x.dtype)


def compute_gradient(x: Tensor, grad: Tensor, norm: Norm) -> Tensor:
    """The gradient by x, given the gradient by y.

    The windowed sum S is its own transpose, so
    dx = grad · d^-¾ - 1.5 · scale · x · S(grad · x · d^-7/4).
    """
    wide = _widen(x)
    d, power = _compute_powers(wide, norm)
    scaled = power.mul_(grad)
    inner = _sum_window((scaled * wide).div_(d), norm).mul_(wide)
    return scaled.sub_(inner, alpha=1.5 * norm.scale).to(x.dtype)


# A CPU normalizes one image after the other, so that the intermediates stay in a core's cache:
# three times as fast. The loop is one operator to torch.compile, whose own loops over a window are
# slower still. Other devices take the whole batch by tensor operations, which torch.compile fuses.


@torch.library.custom_op("alexnet::response_norm", mutates_args=(), device_types="cpu")
def normalize_by_image(
    x: Tensor, size: int, groups: int, dims: Sequence[int], scale: float, k: float
) -> Tensor:
    """`normalize` of one image after the other."""
    norm = Norm(size, groups, dims, scale, k)
    y = torch.empty_like(x)
    for i in range(len(x)):
        one = slice(i, i + 1)
        y[one] = normalize(x[one], norm)
    return y


@torch.library.custom_op("alexnet::response_norm_backward", mutates_args=(), device_types="cpu")
def compute_gradient_by_image(
    x: Tensor, grad: Tensor, size: int, groups: int, dims: Sequence[int], scale: float, k: float
) -> Tensor:
    """`compute_gradient` of one image after the other."""
    norm = Norm(size, groups, dims, scale, k)
    dx = torch.empty_like(x)
    for i in range(len(x)):
        one = slice(i, i + 1)
        dx[one] = compute_gradient(x[one], grad[one], norm)
    return dx


@normalize_by_image.register_fake
@compute_gradient_by_image.register_fake
def _allocate_output(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _widen(x: Tensor) -> Tensor:
    """In float32 at least: near k = 2, two neighboring bfloat16 values differ by 2^-6."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _compute_powers(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """d and d^-¾, the latter by square roots: two to four times faster than `pow`."""
    d = _sum_window(x * x, norm).mul_(norm.scale).add_(norm.k)
    r = d.rsqrt()
    return d, r.sqrt().mul_(r)


def _sum_window(x: Tensor, norm: Norm) -> Tensor:
    """At each place the sum over its window, one dimension after the other."""
    sums = torch.unflatten(x, 1, (norm.groups, -1))
    for dim in norm.dims:
        terms = sums
        sums = terms.clone()
        length = terms.shape[dim]
        for shift in range(1, min(norm.size // 2, length - 1) + 1):
            kept = length - shift
            sums.narrow(dim, shift, kept).add_(terms.narrow(dim, 0, kept))
            sums.narrow(dim, 0, kept).add_(terms.narrow(dim, shift, kept))
    return sums.view(x.shape)
