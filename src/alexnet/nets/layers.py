"""The layers that torch does not have in the authors' form, and the weights a net begins with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import rng


class _ResponseNorm(torch.autograd.Function):
    """y = x · d^-¾ with d = k + scale · S(x²), S being the sum over a window of channels or of pixels.

    The backward pass is written out because autograd's own keeps every intermediate. Only x is kept, in its own dtype;
    the ReLU that gave it keeps it anyway, so behind a ReLU the norm costs no memory at all. d is computed twice.
    """

    @staticmethod
    def forward(ctx, x: Tensor, *window) -> Tensor:
        ctx.save_for_backward(x)
        ctx.window = window
        return _on_device(x)(x, None, *window)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return _on_device(x)(x, grad, *ctx.window), None, None, None, None


def _on_device(x: Tensor):
    return _by_image if x.device.type == "cpu" else _normed


def _normed(
    x: Tensor, grad: Tensor | None, size: int, groups: int | None, scale: float, k: float
) -> Tensor:
    """y; or, given the gradient by y, that by x. S is its own transpose, so
    dx = g · d^-¾ - 1.5 · scale · x · S(g · x · d^-7/4).

    In float32 at least: near k = 2 a bfloat16 step is 2^-6. d^-¾ is had by rsqrt, two to four times faster than pow.
    """
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    d = _window_sum(wide * wide, size, groups).mul_(scale).add_(k)
    r = d.rsqrt()
    power = r.sqrt().mul_(r)
    if grad is None:
        return power.mul_(wide).to(x.dtype)
    scaled = power.mul_(grad)
    inner = _window_sum((scaled * wide).div_(d), size, groups).mul_(wide)
    return scaled.sub_(inner, alpha=1.5 * scale).to(x.dtype)


@torch.library.custom_op("alexnet::response_norm", mutates_args=(), device_types="cpu")
def _by_image(
    x: Tensor, grad: Tensor | None, size: int, groups: int | None, scale: float, k: float
) -> Tensor:
    """`_normed` of one image after the other, whose intermediates stay in a core's cache: three times as fast, and
    one operation to the compiler, whose own loops over a window are slower still."""
    out = torch.empty_like(x)
    for i in range(len(x)):
        one = slice(i, i + 1)
        out[one] = _normed(x[one], None if grad is None else grad[one], size, groups, scale, k)
    return out


@_by_image.register_fake
def _(x: Tensor, *_) -> Tensor:
    return torch.empty_like(x)


def _window_sum(x: Tensor, size: int, groups: int | None) -> Tensor:
    """Sums over `size` channels within each of `groups` blocks; None: over size × size pixels; clipped at borders."""
    sums = x if groups is None else x.unflatten(1, (groups, -1))
    for dim in (2, 3) if groups is None else (2,):
        terms, sums = sums, sums.clone()
        for shift in range(1, min(size // 2, terms.shape[dim] - 1) + 1):
            kept = terms.shape[dim] - shift
            sums.narrow(dim, shift, kept).add_(terms.narrow(dim, 0, kept))
            sums.narrow(dim, 0, kept).add_(terms.narrow(dim, shift, kept))
    return sums.view(x.shape)


class LocalResponseNorm(nn.Module):
    """Cross-map normalization (paper §3.3), for each of `groups` blocks of channels on its own.

    The same values as `torch.nn.LocalResponseNorm(size, alpha, 0.75, k)` on each block: alpha is divided by `size`,
    as the authors' code does, and a window never crosses a tower's border. Computed in float32 at least.

    Shape: (n, channels, height, width), channels divisible by groups; same dtype out.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, k: float = 2.0, groups: int = 1):
        super().__init__()
        if size % 2 == 0:
            raise ValueError(
                f"LocalResponseNorm size={size} must be odd, so that the window has a center"
            )
        self.size, self.alpha, self.k, self.groups = size, alpha, k, groups

    def forward(self, x: Tensor) -> Tensor:
        return _ResponseNorm.apply(x, self.size, self.groups, self.alpha / self.size, self.k)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, k={self.k}, groups={self.groups}"


class SpatialResponseNorm(nn.Module):
    """The authors' extra norm in stage 2 (`rnorm` in layers-145.cfg; not in the paper): squares summed over a
    size × size window of the same channel, clipped at the border while the divisor stays size².

    Shape: (n, channels, height, width); same dtype out.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-3, k: float = 1.0):
        super().__init__()
        self.size, self.alpha, self.k = size, alpha, k

    def forward(self, x: Tensor) -> Tensor:
        return _ResponseNorm.apply(x, self.size, None, self.alpha / self.size**2, self.k)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, k={self.k}"


class Dropout(nn.Module):
    """The paper's dropout (§4.2): units are zeroed in training and not scaled up; at test they are all multiplied by
    1 - p. torch's `nn.Dropout` doubles in training instead, which amounts to another learning rate.

    Shape: (n, units). With `keys`, (n,) int64, a unit's fate depends on its image's key, `layer` and its own number
    alone, whatever device it lies on; where units are spread, `part` says which share lies here. Without, torch draws.
    """

    def __init__(self, p: float = 0.5, layer: int = 0):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"model.dropout={p} must lie in [0, 1)")
        self.p, self.layer, self.part = p, layer, 0
        self.keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x * (1 - self.p)
        if self.p == 0:
            return x
        if self.keys is None:
            return x * (torch.rand_like(x, dtype=torch.float32) >= self.p)
        first = (self.layer << 16) + self.part * x.shape[1]
        return x * (rng.draw_uniform(self.keys, first, x.shape[1]) >= self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class EdgePadding(nn.Module):
    """Zeros at the right and bottom until windows of `kernel` at `stride` cover the image: 224 becomes 227 for 11/4.

    cuda-convnet rounded output sizes up and let the last window hang over the edge.
    """

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return F.pad(
            x, (0, -(width - self.kernel) % self.stride, 0, -(height - self.kernel) % self.stride)
        )


class GroupedLinear(nn.Module):
    """A linear layer of `groups` blocks, each seeing its own share of the input.

    Shape: (n, inputs) to (n, outputs); weight (outputs, inputs / groups), as a grouped convolution has it.
    """

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.in_features, self.out_features, self.groups = inputs, outputs, groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.unflatten(1, (self.groups, -1)).transpose(0, 1)
        weights = self.weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        return torch.bmm(blocks, weights).transpose(0, 1).flatten(1) + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, groups={self.groups}"


ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def build_activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(
            f"model.activation={name} is not known; choose one of {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]()


def compile_network(net: nn.Module, mode: str | None = None) -> None:
    """One graph, and checkpoints keep their names: so does `net.compile()` of torch 2.14, but that of 2.11 compiles the
    layers of an `nn.Sequential` one by one."""
    net.forward = torch.compile(net.forward, dynamic=False, mode=mode)  # type: ignore[method-assign]
