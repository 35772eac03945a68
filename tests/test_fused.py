"""The fused stage against ReLU, norm and pool one by one: on a GPU, else in Triton's interpreter."""

import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="it is the interpreter's own run")
@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels run on the GPU")
def test_in_the_interpreter():
    """In a process of its own: Triton decides when it is imported whether to interpret."""
    command = [sys.executable, "-m", "pytest", "-n", "0", __file__]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(
    DEVICE == "cpu" and "TRITON_INTERPRET" not in os.environ,
    reason="needs a GPU or the interpreter",
)
@pytest.mark.parametrize("height, width", [(7, 9), (8, 6)])
@pytest.mark.parametrize("groups, size", [(1, 5), (2, 5), (2, 3)])
def test_fused_equals_one_by_one(height, width, groups, size):
    from alexnet.nets.fused import fused
    from alexnet.nets.layers import LocalResponseNorm

    torch.manual_seed(0)
    norm, pool = (
        LocalResponseNorm(size, alpha=1e-2, groups=groups),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    x = (
        (torch.randn(2, 12, height, width, device=DEVICE) * 30)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
    )
    expected, actual = pool(norm(x.relu())), fused(norm, pool, x)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, x, grad)[0],
        torch.autograd.grad(expected, x, grad)[0],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_fused_compiled_net_in_bfloat16():
    from alexnet.nets.alexnet import AlexNet
    from alexnet.nets.fused import fuse
    from alexnet.nets.layers import compile_network

    torch.manual_seed(0)
    net = AlexNet(num_classes=10, width=0.25).to(DEVICE, memory_format=torch.channels_last).eval()
    x = torch.randn(4, 3, 224, 224, device=DEVICE) * 50
    expected = net(x)
    names = list(net.state_dict())
    fuse(net)
    compile_network(net)
    assert list(net.state_dict()) == names
    with torch.autocast(DEVICE, torch.bfloat16):
        actual = net(x)
    torch.testing.assert_close(
        actual.float(), expected, rtol=0.1, atol=0.05 * expected.abs().max().item()
    )


@pytest.mark.skipif(
    "TRITON_INTERPRET" in os.environ, reason="nothing is compiled in the interpreter"
)
@pytest.mark.parametrize("channels", [96, 256])
@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_the_kernels_compile_for_an_h100(name, channels):
    """Needs no GPU. A value is loaded once, with its neighbors, 16 bytes at a time."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from alexnet.nets import fused

    options = fused.launch_options(torch.bfloat16, channels, [2, 5, 3, 2])
    warps = options.pop("num_warps")
    kernel = getattr(fused, name)
    types = {"places": "*u8", "scale": "fp32", "k": "fp32"} | dict.fromkeys(
        ("grad", "x", "out", "dx"), "*bf16"
    )
    signature = {a: "constexpr" if a in options else types.get(a, "i32") for a in kernel.arg_names}
    aligned = [i for i, a in enumerate(kernel.arg_names) if a == "C" or types.get(a, "")[:1] == "*"]
    source = ASTSource(
        kernel, signature, options, {(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}
    )
    loads = re.findall(r"ld\.global[.\w]*", compiled.asm["ptx"])
    assert compiled.asm["cubin"] and compiled.metadata.shared < 100_000
    assert len(loads) < 40 and all(load.endswith(".v4.b32") for load in loads), loads
