"""The fused stage against its layers: on a GPU, else in Triton's interpreter."""

import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from alexnet.nets.alexnet import AlexNet
from alexnet.nets.layers import compile_network
from alexnet.nets.norms import LocalResponseNorm

triton = pytest.importorskip("triton")

# Only where Triton is installed.
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from alexnet.nets import fused  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IS_INTERPRETED = "TRITON_INTERPRET" in os.environ


@pytest.mark.skipif(IS_INTERPRETED, reason="this is the interpreter's own run")
@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels run on the GPU")
def test_in_the_interpreter():
    """In a new process, because Triton decides when it is imported whether to interpret."""
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout


@pytest.mark.skipif(DEVICE == "cpu" and not IS_INTERPRETED, reason="needs a GPU or the interpreter")
@pytest.mark.parametrize(("height", "width"), [(7, 9), (8, 6)])
@pytest.mark.parametrize(("towers", "size"), [(1, 5), (2, 5), (2, 3)])
def test_the_fused_stage_equals_its_layers(height, width, towers, size):
    torch.manual_seed(0)
    norm = LocalResponseNorm(size, alpha=1e-2, groups=towers)
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    x = torch.randn(2, 12, height, width, device=DEVICE) * 30
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    expected = pool(norm(x.relu()))
    grad = torch.randn_like(expected)
    (expected_dx,) = torch.autograd.grad(expected, x, grad)

    y = fused.run_kernels(x, norm, pool)
    (dx,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(dx, expected_dx, rtol=1e-5, atol=1e-6)


def test_fusing_keeps_the_function_and_the_names_of_weights():
    torch.manual_seed(0)
    net = AlexNet(num_classes=10, width=0.125, crop=67).eval()
    x = torch.randn(2, 3, 67, 67) * 50
    expected = net(x)
    names = list(net.state_dict())
    fused.fuse_stages(net)
    stages = [name for name, layer in net.named_children() if isinstance(layer, fused.FusedStage)]
    assert stages == ["relu1", "relu2"]
    assert list(net.state_dict()) == names
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_fused_and_compiled_network_in_bfloat16():
    torch.manual_seed(0)
    net = AlexNet(num_classes=10, width=0.25).to(DEVICE, memory_format=torch.channels_last).eval()
    x = torch.randn(4, 3, 224, 224, device=DEVICE) * 50
    expected = net(x)
    names = list(net.state_dict())
    fused.fuse_stages(net)
    compile_network(net)
    assert list(net.state_dict()) == names
    with torch.autocast(DEVICE, torch.bfloat16):
        logits = net(x)
    limit = 0.05 * expected.abs().max().item()
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=limit)


@pytest.mark.skipif(IS_INTERPRETED, reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize("channels", [96, 256])
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def test_the_kernels_compile_for_an_h100(name, channels):
    """Needs no GPU. A value is loaded once, with its neighbors, 16 bytes at a time."""
    kernel = getattr(fused, name)
    geometry = fused.Geometry(towers=2, norm_size=5, pool_size=3, pool_stride=2)
    constants = fused.build_options(torch.bfloat16, channels, geometry)
    warps = constants.pop("num_warps")
    types = {"places": "*u8", "scale": "fp32", "k": "fp32"}
    types |= dict.fromkeys(("grad", "x", "out", "dx"), "*bf16")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "i32") for argument in kernel.arg_names}
    # As at run time: addresses and the number of channels are multiples of 16.
    alignment = {
        (place,): [["tt.divisibility", 16]]
        for place, (argument, kind) in enumerate(signature.items())
        if argument == "channels" or kind.startswith("*")
    }
    source = ASTSource(kernel, signature, constants, alignment)
    target = GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    loads = re.findall(r"ld\.global[.\w]*", compiled.asm["ptx"])
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared < 100_000
    assert len(loads) < 40
    assert all(load.endswith(".v4.b32") for load in loads), loads
