"""ReLU, cross-map norm and overlapping max-pool of a stage as one Triton kernel each way, for CUDA.

A convolution's output is read once forward and once back. Kept for backward are itself and, for each output, which
pixel of its window was the largest. That is about 7 bytes of traffic an element in bfloat16; compiled, 41.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from alexnet.nets.layers import LocalResponseNorm


class FusedStage(nn.Sequential):
    """ReLU, `norm` and `pool`: layer by layer on a CPU, one kernel each way on a GPU.

    Shape: (n, channels, height, width) in channels-last memory.
    """

    def __init__(self, norm: LocalResponseNorm, pool: nn.MaxPool2d):
        super().__init__()
        self.relu, self.norm, self.pool = nn.ReLU(), norm, pool

    def forward(self, x: Tensor) -> Tensor:
        return fused(self.norm, self.pool, x) if x.is_cuda else super().forward(x)


def fused(norm: LocalResponseNorm, pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    sizes: Any = [norm.groups, norm.size, pool.kernel_size, pool.stride]
    return relu_norm_pool(x, sizes, norm.alpha / norm.size, norm.k)[0]


def fuse(net: nn.Module) -> None:
    """Puts a `FusedStage` in place of every ReLU, norm and pool that follow one another. No parameter is concerned."""
    layers = list(net.named_children())
    for (first, relu), (second, norm), (third, pool) in zip(
        layers, layers[1:], layers[2:], strict=False
    ):
        if (type(relu), type(norm), type(pool)) == (nn.ReLU, LocalResponseNorm, nn.MaxPool2d):
            net.set_submodule(first, FusedStage(norm, pool))  # type: ignore[arg-type]
            net.set_submodule(second, nn.Identity())
            net.set_submodule(third, nn.Identity())


@torch.library.custom_op("alexnet::relu_norm_pool", mutates_args=())
def relu_norm_pool(x: Tensor, sizes: list[int], scale: float, k: float) -> tuple[Tensor, Tensor]:
    """The stage's output, and the place of each maximum in its window, uint8. `sizes`: towers, channels of a norm's
    window, pixels of a pool's window and its stride."""
    x = x.contiguous(memory_format=torch.channels_last)
    out, places = _outputs(x, sizes)
    _launch(_forward, out, sizes, x, out, places, scale, k, x.shape, out.shape)
    return out, places


@relu_norm_pool.register_fake
def _outputs(x: Tensor, sizes: list[int], *_) -> tuple[Tensor, Tensor]:
    height, width = (-(-(side - sizes[2]) // sizes[3]) + 1 for side in x.shape[2:])  # rounded up
    shape = (*x.shape[:2], height, width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return out, torch.empty_like(out, dtype=torch.uint8)


@torch.library.custom_op("alexnet::relu_norm_pool_backward", mutates_args=())
def _gradient(
    grad: Tensor, x: Tensor, places: Tensor, sizes: list[int], scale: float, k: float
) -> Tensor:
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    dx = torch.empty_like(x)
    _launch(_backward, dx, sizes, grad, x, places, dx, scale, k, x.shape, places.shape)
    return dx


@_gradient.register_fake
def _(grad: Tensor, x: Tensor, *_) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _setup(ctx, inputs, output) -> None:
    x, *ctx.rest = inputs
    ctx.save_for_backward(x, output[1])


def _back(ctx, grad: Tensor, _):
    x, places = ctx.saved_tensors
    return _gradient(grad, x, places, *ctx.rest), None, None, None


relu_norm_pool.register_autograd(_back, setup_context=_setup)


def _launch(kernel, made: Tensor, sizes: list[int], *args) -> None:
    """A program for each 64 pixels, or 16 in float32, of a tower of what is made: as many as the registers hold."""
    *tensors, scale, k, shape, pooled = args
    pixels, options = (
        made.numel() // made.shape[1],
        launch_options(made.dtype, made.shape[1], sizes),
    )
    grid = triton.cdiv(pixels, options["PIXELS"]), sizes[0]
    kernel[grid](*tensors, scale, k, pixels, *shape[1:], *pooled[2:], **options)


def launch_options(dtype: torch.dtype, channels: int, sizes: list[int]) -> dict[str, Any]:
    """What the kernels are compiled for. bfloat16 squares are summed in TF32, float32 ones as three of these."""
    towers, size, window, stride = sizes
    wide = dtype == torch.float32
    block = max(16, triton.next_power_of_2(channels // towers))
    return {
        "CHANNELS": channels // towers,
        "BLOCK": block,
        "PIXELS": 16 if wide else 64,
        "HALF": size // 2,
        "WINDOW": window,
        "STRIDE": stride,
        "PRECISION": "tf32x3" if wide else "tf32",
        "num_warps": block // 16,
    }


@triton.jit
def _relu(x, pixel, C, c, inside):
    """In float32; 0 where it is not inside."""
    return tl.maximum(tl.load(x + pixel.to(tl.int64) * C + c, inside, 0.0).to(tl.float32), 0.0)


@triton.jit
def _window(values, BLOCK: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """Sums over a channel and its neighbors, by a matrix of ones along the diagonal: the GPU has units for that, and
    every value is loaded once."""
    c = tl.arange(0, BLOCK)
    near = tl.abs(c[:, None] - c[None, :]) <= HALF
    return tl.dot(values, near.to(tl.float32), input_precision=PRECISION)


@triton.jit
def _forward(
    x, out, places, scale, k, pixels, C, H, W, PH, PW,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr,
    HALF: tl.constexpr, WINDOW: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    tower = tl.program_id(1) * CHANNELS
    n, ph, pw = p // (PH * PW), p // PW % PH, p % PW
    here = (p < pixels) & (c < CHANNELS)
    best = tl.full((PIXELS, BLOCK), -1.0, tl.float32)
    which = tl.zeros((PIXELS, BLOCK), tl.int32)
    for place in range(WINDOW * WINDOW):
        h, w = ph * STRIDE + place // WINDOW, pw * STRIDE + place % WINDOW
        inside = here & (h < H) & (w < W)
        v = _relu(x + tower, (n * H + h) * W + w, C, c, inside)
        r = tl.rsqrt(k + scale * _window(v * v, BLOCK, HALF, PRECISION))
        y = v * r * tl.sqrt(r)
        better = inside & (y > best)
        best = tl.where(better, y, best)
        which = tl.where(better, place, which)
    q = p.to(tl.int64) * C + tower + c
    tl.store(out + q, best.to(out.dtype.element_ty), mask=here)
    tl.store(places + q, which.to(tl.uint8), mask=here)


@triton.jit
def _backward(
    grad, x, places, dx, scale, k, pixels, C, H, W, PH, PW,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr,
    HALF: tl.constexpr, WINDOW: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    tower = tl.program_id(1) * CHANNELS
    n, h, w = p // (H * W), p // W % H, p % W
    here = (p < pixels) & (c < CHANNELS)
    v = _relu(x + tower, p, C, c, here)
    r = tl.rsqrt(k + scale * _window(v * v, BLOCK, HALF, PRECISION))
    g = tl.zeros((PIXELS, BLOCK), tl.float32)
    for a in tl.static_range(
        (WINDOW + STRIDE - 1) // STRIDE
    ):  # the windows in which this pixel lies
        for b in tl.static_range((WINDOW + STRIDE - 1) // STRIDE):
            ph, pw = h // STRIDE - a, w // STRIDE - b
            i, j = h - ph * STRIDE, w - pw * STRIDE
            there = (
                here & (ph >= 0) & (ph < PH) & (i < WINDOW) & (pw >= 0) & (pw < PW) & (j < WINDOW)
            )
            q = ((n * PH + ph) * PW + pw).to(tl.int64) * C + tower + c
            chosen = tl.load(places + q, there, 255) == (i * WINDOW + j).to(tl.uint8)
            g += tl.where(chosen, tl.load(grad + q, there, 0.0).to(tl.float32), 0.0)
    scaled = g * r * tl.sqrt(r)  # g · d^-¾
    window = _window(scaled * v * r * r, BLOCK, HALF, PRECISION)  # Σ g · x · d^-7/4
    result = tl.where(v > 0, scaled - 1.5 * scale * v * window, 0.0)
    tl.store(dx + p.to(tl.int64) * C + tower + c, result.to(dx.dtype.element_ty), mask=here)
