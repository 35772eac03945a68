"""ReLU, cross-map norm and overlapping max-pool of a stage as one Triton kernel each way, for CUDA.

Forward, a program computes a block of output pixels, all channels of one tower. For each place of
the pool's window it loads the input there, takes the ReLU, normalizes, and keeps the largest value
and its place. A pixel that lies in several windows is normalized several times, which is cheaper
than writing the normalized maps and reading them back.

Backward, a program computes a block of input pixels. It collects the gradients of the windows in
which this pixel's value was the largest, and takes them back through the norm (its formula is in
norms.py) and the ReLU.

A convolution's output is read once forward and once backward. Kept for the backward pass are that
output and, as uint8, the place of each maximum in its window. That is about 7 bytes of memory
traffic for each element in bfloat16; the compiled layers need 41.
"""

# mypy: allow-untyped-decorators
# (Triton has no types.)

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from alexnet.nets.norms import LocalResponseNorm


class Geometry(NamedTuple):
    """The sizes of a stage. Operators take them one by one, as their schemas know no tuples."""

    towers: int  # blocks of channels that the norm keeps separate
    norm_size: int  # channels in the norm's window
    pool_size: int  # height and width of the pool's window
    pool_stride: int


class FusedStage(nn.Module):
    """ReLU, `norm` and `pool`: one kernel each way on a GPU, layer by layer on a CPU.

    Shape: (n, channels, height, width) in channels-last memory.
    """

    def __init__(self, norm: LocalResponseNorm, pool: nn.MaxPool2d):
        super().__init__()
        self.relu = nn.ReLU()
        self.norm = norm
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return run_kernels(x, self.norm, self.pool)
        y: Tensor = self.pool(self.norm(self.relu(x)))
        return y


def fuse_stages(net: nn.Module) -> None:
    """Replaces every ReLU, norm and pool that follow one another by a `FusedStage`.

    These layers have no parameters, so checkpoints do not change.
    """
    layers = list(net.named_children())
    for i in range(len(layers) - 2):
        (relu_name, relu), (norm_name, norm), (pool_name, pool) = layers[i : i + 3]
        if (
            isinstance(relu, nn.ReLU)
            and isinstance(norm, LocalResponseNorm)
            and isinstance(pool, nn.MaxPool2d)
        ):
            net.set_submodule(relu_name, FusedStage(norm, pool))
            net.set_submodule(norm_name, nn.Identity())
            net.set_submodule(pool_name, nn.Identity())


def run_kernels(x: Tensor, norm: LocalResponseNorm, pool: nn.MaxPool2d) -> Tensor:
    assert isinstance(pool.kernel_size, int)
    assert isinstance(pool.stride, int)
    geometry = Geometry(norm.groups, norm.size, pool.kernel_size, pool.stride)
    scale = norm.alpha / norm.size
    y: Tensor = relu_norm_pool(x, *geometry, scale, norm.k)[0]
    return y


@torch.library.custom_op("alexnet::relu_norm_pool", mutates_args=())
def relu_norm_pool(
    x: Tensor,
    towers: int,
    norm_size: int,
    pool_size: int,
    pool_stride: int,
    scale: float,
    k: float,
) -> tuple[Tensor, Tensor]:
    """The stage's output, and the place of each maximum in its window, uint8."""
    geometry = Geometry(towers, norm_size, pool_size, pool_stride)
    x = x.contiguous(memory_format=torch.channels_last)
    out, places = _allocate_outputs(x, *geometry)
    launch = plan_launch(out, geometry)
    sizes = (launch.pixels, *x.shape[1:], *out.shape[2:])
    forward_kernel[launch.grid](x, out, places, scale, k, *sizes, **launch.options)
    return out, places


@relu_norm_pool.register_fake
def _allocate_outputs(
    x: Tensor, towers: int, norm_size: int, pool_size: int, pool_stride: int, *_: float
) -> tuple[Tensor, Tensor]:
    n, channels, height, width = x.shape
    # Rounded up, as in `nn.MaxPool2d(…, ceil_mode=True)`.
    out_height = -(-(height - pool_size) // pool_stride) + 1
    out_width = -(-(width - pool_size) // pool_stride) + 1
    out = torch.empty(
        (n, channels, out_height, out_width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    return out, torch.empty_like(out, dtype=torch.uint8)


@torch.library.custom_op("alexnet::relu_norm_pool_backward", mutates_args=())
def compute_gradient(
    grad: Tensor,
    x: Tensor,
    places: Tensor,
    towers: int,
    norm_size: int,
    pool_size: int,
    pool_stride: int,
    scale: float,
    k: float,
) -> Tensor:
    """The gradient by x, given the gradient by the stage's output."""
    x = x.contiguous(memory_format=torch.channels_last)
    grad = grad.contiguous(memory_format=torch.channels_last)
    dx = torch.empty_like(x)
    launch = plan_launch(dx, Geometry(towers, norm_size, pool_size, pool_stride))
    sizes = (launch.pixels, *x.shape[1:], *places.shape[2:])
    backward_kernel[launch.grid](grad, x, places, dx, scale, k, *sizes, **launch.options)
    return dx


@compute_gradient.register_fake
def _allocate_gradient(grad: Tensor, x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


class _Context(FunctionCtx):
    constants: tuple[int, int, int, int, float, float]
    saved_tensors: tuple[Tensor, ...]


def _save_for_backward(
    ctx: _Context,
    inputs: tuple[Tensor, int, int, int, int, float, float],
    output: tuple[Tensor, Tensor],
) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.constants = inputs[1:]


def _differentiate(ctx: _Context, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, places = ctx.saved_tensors
    dx: Tensor = compute_gradient(grad, x, places, *ctx.constants)
    return dx, None, None, None, None, None, None


relu_norm_pool.register_autograd(_differentiate, setup_context=_save_for_backward)


class Launch(NamedTuple):
    """How often a kernel runs, and what it is compiled for."""

    pixels: int  # of all images
    grid: tuple[int, int]  # programs: blocks of pixels, towers
    options: dict[str, int | str]


def plan_launch(computed: Tensor, geometry: Geometry) -> Launch:
    """One program for each block of pixels of each tower of the tensor to be computed."""
    channels = computed.shape[1]
    pixels = computed.numel() // channels
    options = build_options(computed.dtype, channels, geometry)
    blocks = triton.cdiv(pixels, options["BLOCK_PIXELS"])
    return Launch(pixels, (blocks, geometry.towers), options)


def build_options(dtype: torch.dtype, channels: int, geometry: Geometry) -> dict[str, int | str]:
    """The constants that the kernels are compiled for."""
    # A block has as many pixels as the registers hold. Sums over channels are TF32 products: one is
    # enough for bfloat16 inputs, float32 ones take three.
    tower_channels = channels // geometry.towers
    block_channels = max(16, triton.next_power_of_2(tower_channels))
    is_wide = dtype == torch.float32
    return {
        "TOWER_CHANNELS": tower_channels,
        "BLOCK_CHANNELS": block_channels,
        "BLOCK_PIXELS": 16 if is_wide else 64,
        "NORM_RADIUS": geometry.norm_size // 2,
        "POOL_SIZE": geometry.pool_size,
        "POOL_STRIDE": geometry.pool_stride,
        "PRECISION": "tf32x3" if is_wide else "tf32",
        "num_warps": block_channels // 16,
    }


# In the kernels, tensors in memory are pointers to channels-last data, and blocks have the shape
# (pixels, channels of a tower).


@triton.jit
def _load_relu(
    x: tl.tensor, pixel: tl.tensor, channels: tl.tensor, channel: tl.tensor, mask: tl.tensor
) -> tl.tensor:
    """In float32; 0 outside the mask."""
    value = tl.load(x + pixel.to(tl.int64) * channels + channel, mask, 0.0)
    return tl.maximum(value.to(tl.float32), 0.0)


@triton.jit
def _sum_neighbors(
    values: tl.tensor,
    BLOCK_CHANNELS: tl.constexpr,
    NORM_RADIUS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Sums over each channel and its neighbors."""
    # As a product with a band matrix of ones: a GPU has units for matrix products, and every value
    # is loaded once.
    channel = tl.arange(0, BLOCK_CHANNELS)
    band = tl.abs(channel[:, None] - channel[None, :]) <= NORM_RADIUS
    return tl.dot(values, band.to(tl.float32), input_precision=PRECISION)


@triton.jit
def forward_kernel(
    x: tl.tensor, out: tl.tensor, places: tl.tensor,
    scale: tl.tensor, k: tl.tensor, pixels: tl.tensor, channels: tl.tensor,
    height: tl.tensor, width: tl.tensor, out_height: tl.tensor, out_width: tl.tensor,
    TOWER_CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
    NORM_RADIUS: tl.constexpr, POOL_SIZE: tl.constexpr, POOL_STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Fills `out` and `places`; `pixels` counts those of `out`."""
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)[:, None]
    channel = tl.arange(0, BLOCK_CHANNELS)[None, :]
    tower = tl.program_id(1) * TOWER_CHANNELS  # the tower's first channel
    image = pixel // (out_height * out_width)
    out_row = pixel // out_width % out_height
    out_column = pixel % out_width
    mask = (pixel < pixels) & (channel < TOWER_CHANNELS)

    best = tl.full((BLOCK_PIXELS, BLOCK_CHANNELS), -1.0, tl.float32)
    best_place = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.int32)
    for place in range(POOL_SIZE * POOL_SIZE):
        row = out_row * POOL_STRIDE + place // POOL_SIZE
        column = out_column * POOL_STRIDE + place % POOL_SIZE
        # The last windows may hang over the edge.
        inside = mask & (row < height) & (column < width)
        in_pixel = (image * height + row) * width + column
        value = _load_relu(x + tower, in_pixel, channels, channel, inside)
        squares = _sum_neighbors(value * value, BLOCK_CHANNELS, NORM_RADIUS, PRECISION)
        r = tl.rsqrt(k + scale * squares)
        y = value * r * tl.sqrt(r)
        is_better = inside & (y > best)
        best = tl.where(is_better, y, best)
        best_place = tl.where(is_better, place, best_place)

    target = pixel.to(tl.int64) * channels + tower + channel
    tl.store(out + target, best.to(out.dtype.element_ty), mask=mask)
    tl.store(places + target, best_place.to(tl.uint8), mask=mask)


@triton.jit
def backward_kernel(
    grad: tl.tensor, x: tl.tensor, places: tl.tensor, dx: tl.tensor,
    scale: tl.tensor, k: tl.tensor, pixels: tl.tensor, channels: tl.tensor,
    height: tl.tensor, width: tl.tensor, out_height: tl.tensor, out_width: tl.tensor,
    TOWER_CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
    NORM_RADIUS: tl.constexpr, POOL_SIZE: tl.constexpr, POOL_STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Fills `dx`; `pixels` counts those of `dx`."""
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)[:, None]
    channel = tl.arange(0, BLOCK_CHANNELS)[None, :]
    tower = tl.program_id(1) * TOWER_CHANNELS
    image = pixel // (height * width)
    row = pixel // width % height
    column = pixel % width
    mask = (pixel < pixels) & (channel < TOWER_CHANNELS)

    value = _load_relu(x + tower, pixel, channels, channel, mask)
    squares = _sum_neighbors(value * value, BLOCK_CHANNELS, NORM_RADIUS, PRECISION)
    r = tl.rsqrt(k + scale * squares)

    # The gradient by the normalized value: from each window in which the pixel lies.
    dy = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    for up in tl.static_range((POOL_SIZE + POOL_STRIDE - 1) // POOL_STRIDE):
        for left in tl.static_range((POOL_SIZE + POOL_STRIDE - 1) // POOL_STRIDE):
            out_row = row // POOL_STRIDE - up
            out_column = column // POOL_STRIDE - left
            row_in_window = row - out_row * POOL_STRIDE
            column_in_window = column - out_column * POOL_STRIDE
            has_row = (out_row >= 0) & (out_row < out_height) & (row_in_window < POOL_SIZE)
            has_column = (
                (out_column >= 0) & (out_column < out_width) & (column_in_window < POOL_SIZE)
            )
            inside = mask & has_row & has_column
            out_pixel = (image * out_height + out_row) * out_width + out_column
            source = out_pixel.to(tl.int64) * channels + tower + channel
            place = (row_in_window * POOL_SIZE + column_in_window).to(tl.uint8)
            is_largest = tl.load(places + source, inside, 255) == place
            window_grad = tl.load(grad + source, inside, 0.0).to(tl.float32)
            dy += tl.where(is_largest, window_grad, 0.0)

    scaled = dy * r * tl.sqrt(r)  # dy · d^-¾
    product = scaled * value * r * r  # dy · x · d^-7/4
    inner = _sum_neighbors(product, BLOCK_CHANNELS, NORM_RADIUS, PRECISION)
    result = tl.where(value > 0, scaled - 1.5 * scale * value * inner, 0.0)
    target = pixel.to(tl.int64) * channels + tower + channel
    tl.store(dx + target, result.to(dx.dtype.element_ty), mask=mask)
