"""The networks: parameter counts, sizes, and each layer against an independent reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from alexnet.nets import layers
from alexnet.nets.alexnet import AlexNet
from alexnet.nets.layers import (
    Dropout,
    EdgePadding,
    GroupedLinear,
    LocalResponseNorm,
    SpatialResponseNorm,
)

CONF = str(Path(__file__).parent.parent / "conf")
PARAMETERS = {
    "alexnet": 60_965_224,
    "alexnet_2012": 60_965_224,
    "alexnet_one_tower": 59_798_312,
    "alexnet_six_conv": 61_555_304,
    "alexnet_non_overlapping": 60_965_224,
    "alexnet_no_lrn": 60_965_224,
    "alexnet_no_communication": 60_714_408,
    "alexnet_owt": 61_100_840,
    "caffe_alexnet": 60_965_224,
    "caffenet": 60_965_224,
}


def build(name: str, *overrides: str) -> torch.nn.Module:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", [f"model={name}", *overrides])
    return instantiate(cfg.model)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    net = build(name, "model.num_classes=1000")
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]


def test_parameters_of_each_layer():
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in AlexNet().named_children()}
    expected = {"conv1": 34944, "conv2": 307456, "conv3": 885120, "conv4": 663936, "conv5": 442624}
    expected |= {"fc6": 37752832, "fc7": 16781312, "fc8": 4097000}
    assert {name: count for name, count in counts.items() if count} == expected


def sizes(net: torch.nn.Module, crop: int = 224) -> list[int]:
    seen = []
    x = torch.zeros(1, 3, crop, crop)
    for name, layer in net.named_children():
        if name == "flatten":
            break
        x = layer(x)
        if name.startswith(("conv", "pool", "edge")):
            seen.append(x.shape[-1])
    return seen


def test_spatial_sizes():
    assert sizes(AlexNet()) == [227, 55, 27, 27, 13, 13, 13, 13, 6]


def test_non_overlapping_sizes():
    assert sizes(build("alexnet_non_overlapping", "model.num_classes=10")) == [
        227,
        55,
        28,
        26,
        13,
        13,
        13,
        11,
        6,
    ]


def reference_norm(x: np.ndarray, n: int, alpha: float, k: float) -> np.ndarray:
    """§3.3's formula, channel by channel, in float64."""
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        low, high = max(0, c - n // 2), min(x.shape[1], c + n // 2 + 1)
        out[:, c] = x[:, c] / (k + alpha / n * (x[:, low:high] ** 2).sum(1)) ** 0.75
    return out


@pytest.mark.parametrize("scale", [1, 300])
def test_response_norm_stays_in_its_tower(scale):
    x = np.random.default_rng(0).normal(size=(2, 12, 5, 4)) * scale
    expected = np.concatenate([reference_norm(half, 5, 1e-4, 2.0) for half in np.split(x, 2, 1)], 1)
    actual = LocalResponseNorm(groups=2)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    if scale == 300:  # one window over both towers is another function, and the data shows it
        assert np.abs(actual - reference_norm(x, 5, 1e-4, 2.0)).max() > 1


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("scale", [1, 30, 300])
def test_response_norm_equals_torchs_in_float64(dtype, tolerance, layout, scale):
    torch.manual_seed(0)
    x = (
        (torch.randn(3, 18, 7, 6, dtype=dtype) * scale)
        .relu()
        .to(memory_format=layout)
        .requires_grad_()
    )
    grad = torch.randn_like(x)
    ours = LocalResponseNorm(groups=2)(x)
    exact = x.detach().double().requires_grad_()
    norm = torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)
    theirs = torch.cat([norm(tower) for tower in exact.chunk(2, 1)], 1)
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=0)
    d_ours, d_theirs = (
        torch.autograd.grad(ours, x, grad)[0],
        torch.autograd.grad(theirs, exact, grad.double())[0],
    )
    assert (d_ours - d_theirs).abs().max() <= tolerance * d_theirs.abs().max()
    assert ours.is_contiguous(memory_format=layout) and d_ours.is_contiguous(memory_format=layout)


def test_a_cpus_norm_is_everyone_elses(monkeypatch):
    """A CPU goes image by image, other devices take the batch at once."""
    x, grad = torch.randn(3, 8, 5, 5) * 50, torch.randn(3, 8, 5, 5)
    for norm in (LocalResponseNorm(groups=2), SpatialResponseNorm()):
        results = []
        for compute in (layers._by_image, layers._normed):
            monkeypatch.setattr(layers, "_on_device", lambda x, compute=compute: compute)
            inputs = x.clone().requires_grad_()
            y = norm(inputs)
            results.append((y, *torch.autograd.grad(y, inputs, grad)))
        torch.testing.assert_close(*results, rtol=0, atol=0)


def test_response_norm_in_bfloat16_is_computed_in_float32():
    x = torch.randn(1, 8, 3, 3, dtype=torch.bfloat16) * 50
    torch.testing.assert_close(
        LocalResponseNorm()(x), LocalResponseNorm()(x.float()).bfloat16(), rtol=0, atol=0
    )


def test_spatial_norm():
    x = np.random.default_rng(0).normal(size=(2, 3, 9, 8)) * 200
    expected = np.empty_like(x)
    for i in range(9):
        for j in range(8):
            window = x[:, :, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3]
            expected[:, :, i, j] = x[:, :, i, j] / (1 + 1e-3 / 25 * (window**2).sum((2, 3))) ** 0.75
    np.testing.assert_allclose(
        SpatialResponseNorm()(torch.from_numpy(x)).numpy(), expected, rtol=1e-12
    )
    y = torch.from_numpy(x[:1, :2, :4, :4]).requires_grad_()
    assert torch.autograd.gradcheck(SpatialResponseNorm(), y)


def test_dropout_is_not_inverted():
    layer, x = Dropout(0.25), torch.ones(1000, 50)
    out = layer(x)
    assert set(out.unique().tolist()) == {0.0, 1.0}
    assert abs(out.mean() - 0.75) < 0.01
    torch.testing.assert_close(layer.eval()(x), x * 0.75)


def test_overhanging_windows_equal_a_loop():
    """conv1 at 224: the last window covers columns 216 to 226, the last three of which count as zero."""
    torch.manual_seed(0)
    x, kernel = (
        torch.randn(1, 3, 32, 32, dtype=torch.float64),
        torch.randn(2, 3, 11, 11, dtype=torch.float64),
    )
    actual = torch.nn.functional.conv2d(EdgePadding(11, 4)(x), kernel, stride=4)
    expected = np.zeros((2, 7, 7))
    for i in range(7):
        for j in range(7):
            patch = x[0, :, 4 * i : 4 * i + 11, 4 * j : 4 * j + 11].numpy()
            expected[:, i, j] = (
                kernel[..., : patch.shape[1], : patch.shape[2]].numpy() * patch
            ).sum((1, 2, 3))
    np.testing.assert_allclose(actual[0].numpy(), expected, atol=1e-12)


def test_grouped_linear_equals_blocks():
    layer = GroupedLinear(8, 6, 2)
    torch.nn.init.normal_(layer.weight), torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 8)
    halves = [x[:, :4] @ layer.weight[:3].T, x[:, 4:] @ layer.weight[3:].T]
    torch.testing.assert_close(layer(x), torch.cat(halves, 1) + layer.bias)


def test_initializers():
    torch.manual_seed(0)
    net = AlexNet(num_classes=10, width=0.5)
    stds = {name: p.std().item() for name, p in net.named_parameters() if name.endswith("weight")}
    for name in ("conv3", "conv4", "conv5"):
        assert stds[f"{name}.weight"] == pytest.approx(0.03, rel=0.02)
    for name in ("conv1", "conv2", "fc6", "fc7"):
        assert stds[f"{name}.weight"] == pytest.approx(0.01, rel=0.02)
    ones = {name for name, p in net.named_parameters() if name.endswith("bias") and (p == 1).all()}
    assert ones == {f"{layer}.bias" for layer in ("conv2", "conv4", "conv5", "fc6", "fc7")}


@pytest.mark.parametrize("without", [2, 3, 4, 5, 6, 7])
def test_without_a_layer(without):
    net = AlexNet(num_classes=10, width=0.125, without=without)
    names = dict(net.named_children())
    assert not any(
        name in names
        for name in (f"conv{without}", f"fc{without}", f"relu{without}", f"norm{without}")
    )
    assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 10)


def test_owt_takes_torchvisions_weights():
    from torchvision.models import alexnet

    torch.manual_seed(0)
    theirs = alexnet(weights=None).eval()
    plain = [
        "model.stage1=[relu,pool]",
        "model.stage2=[relu,pool]",
        "model.num_classes=1000",
        "model.dropout=0.0",
    ]
    ours = build("alexnet_owt", *plain).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"without": 1},
        {"activation": "gelu"},
        {"init": "xavier"},
        {"dropout": 1.0},
        {"crop": 20},
        {"stage1": ["batchnorm"]},
    ],
)
def test_wrong_values_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AlexNet(width=0.05, num_classes=3, **wrong)


@pytest.mark.parametrize("init", ["authors", "paper_text", "caffe", "kaiming"])
def test_first_activations_have_the_scale_of_the_initial_weights(init):
    """Before its bias, a layer's outputs have σ · √(fan-in · mean square of the inputs), layer by layer."""
    torch.manual_seed(0)
    net = AlexNet(num_classes=100, crop=131, init=init).eval()
    stds = {"authors": (0.01, 0.01, 0.03, 0.03, 0.03, 0.01), "paper_text": (0.01,) * 6}
    stds |= {"caffe": (0.01,) * 5 + (0.005,), "kaiming": (None,) * 6}
    inputs: dict[str, torch.Tensor] = {}
    layers = {name: module for name, module in net.named_children() if name[:-1] in ("conv", "fc")}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda module, given, name=name: inputs.update({name: given[0]})
        )
    with torch.no_grad():
        logits = net(60 * torch.randn(8, 3, 131, 131))
        for (name, layer), std in zip(list(layers.items())[:6], stds[init], strict=True):
            x, fan_in = inputs[name].double(), layer.weight[0].numel()
            std = std or (2 / fan_in) ** 0.5
            if name == "fc6":
                before, square = F.linear(x, layer.weight.double()), (x**2).mean()
            else:  # borders see zeros: the mean over windows, by a convolution with ones
                before = F.conv2d(
                    x, layer.weight.double(), None, layer.stride, layer.padding, 1, layer.groups
                )
                side = layer.kernel_size[0]
                seen = F.avg_pool2d((x**2).mean(1, keepdim=True), side, layer.stride, layer.padding)
                square = seen.mean()
            assert before.std() == pytest.approx(std * (fan_in * float(square)) ** 0.5, rel=0.15), (
                name
            )
    assert torch.isfinite(logits).all()


def test_the_papers_text_begins_with_less_signal_than_its_source():
    """What depends on the image in the logits: σ = 0.01 in conv3 to conv5 leaves a 27th of it, or less."""
    signal = {}
    for init in ("authors", "paper_text"):
        torch.manual_seed(0)
        net = AlexNet(num_classes=100, crop=131, init=init).eval()
        with torch.no_grad():
            signal[init] = float(net(60 * torch.randn(16, 3, 131, 131)).std(0).mean())
    assert signal["authors"] / signal["paper_text"] > 15
