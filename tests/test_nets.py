"""The networks: parameter counts, sizes, and each layer against an independent reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torchvision.models import alexnet as build_torchvision_alexnet

from alexnet.errors import UserError
from alexnet.nets.alexnet import AlexNet
from alexnet.nets.layers import Dropout, EdgePadding, GroupedLinear
from alexnet.nets.norms import (
    CHANNELS,
    PIXELS,
    LocalResponseNorm,
    Norm,
    SpatialResponseNorm,
    compute_gradient,
    compute_gradient_by_image,
    normalize,
    normalize_by_image,
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
# Standard deviations of conv1 to conv5 and fc6; None is Kaiming's.
INITIAL_STDS = {
    "authors": (0.01, 0.01, 0.03, 0.03, 0.03, 0.01),
    "paper_text": (0.01, 0.01, 0.01, 0.01, 0.01, 0.01),
    "caffe": (0.01, 0.01, 0.01, 0.01, 0.01, 0.005),
    "kaiming": (None, None, None, None, None, None),
}


def build_network(name: str, *overrides: str) -> nn.Module:
    """The network of conf/model/<name>.yaml."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", [f"model={name}", *overrides])
    return instantiate(config.model)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    net = build_network(name, "model.num_classes=1000")
    assert count_parameters(net) == PARAMETERS[name]


def test_parameters_of_each_layer():
    counts = {name: count_parameters(layer) for name, layer in AlexNet().named_children()}
    assert {name: count for name, count in counts.items() if count} == {
        "conv1": 34944,
        "conv2": 307456,
        "conv3": 885120,
        "conv4": 663936,
        "conv5": 442624,
        "fc6": 37752832,
        "fc7": 16781312,
        "fc8": 4097000,
    }


def measure_maps(net: nn.Module, crop: int = 224) -> list[int]:
    """The width of the maps after each padding, convolution and pool."""
    widths = []
    x = torch.zeros(1, 3, crop, crop)
    for name, layer in net.named_children():
        if name == "flatten":
            break
        x = layer(x)
        if name.startswith(("conv", "pool", "edge")):
            widths.append(x.shape[-1])
    return widths


def test_sizes_of_maps():
    assert measure_maps(AlexNet()) == [227, 55, 27, 27, 13, 13, 13, 13, 6]


def test_sizes_of_maps_without_overlapping_pools():
    net = build_network("alexnet_non_overlapping", "model.num_classes=10")
    assert measure_maps(net) == [227, 55, 28, 26, 13, 13, 13, 11, 6]


def normalize_by_formula(x: np.ndarray, n: int, alpha: float, k: float) -> np.ndarray:
    """§3.3's formula, channel by channel, in float64."""
    y = np.empty_like(x)
    channels = x.shape[1]
    for c in range(channels):
        first = max(0, c - n // 2)
        last = min(channels, c + n // 2 + 1)
        squares = (x[:, first:last] ** 2).sum(1)
        y[:, c] = x[:, c] / (k + alpha / n * squares) ** 0.75
    return y


@pytest.mark.parametrize("scale", [1, 300])
def test_response_norm_stays_in_its_tower(scale):
    x = np.random.default_rng(0).normal(size=(2, 12, 5, 4)) * scale
    towers = [normalize_by_formula(tower, 5, 1e-4, 2.0) for tower in np.split(x, 2, 1)]
    y = LocalResponseNorm(groups=2)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, np.concatenate(towers, 1), rtol=1e-12)
    if scale == 300:
        # One window over both towers is another function, and at this scale it shows.
        assert np.abs(y - normalize_by_formula(x, 5, 1e-4, 2.0)).max() > 1


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("scale", [1, 30, 300])
def test_response_norm_equals_torchs_in_float64(dtype, tolerance, layout, scale):
    torch.manual_seed(0)
    x = (torch.randn(3, 18, 7, 6, dtype=dtype) * scale).relu()
    x = x.to(memory_format=layout).requires_grad_()
    grad = torch.randn_like(x)
    y = LocalResponseNorm(groups=2)(x)
    (dx,) = torch.autograd.grad(y, x, grad)

    exact_x = x.detach().double().requires_grad_()
    norm = nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)
    exact_y = torch.cat([norm(tower) for tower in exact_x.chunk(2, 1)], 1)
    (exact_dx,) = torch.autograd.grad(exact_y, exact_x, grad.double())

    torch.testing.assert_close(y.double(), exact_y, rtol=tolerance, atol=0)
    assert (dx - exact_dx).abs().max() <= tolerance * exact_dx.abs().max()
    assert y.is_contiguous(memory_format=layout)
    assert dx.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    "norm",
    [
        Norm(5, 2, CHANNELS, scale=2e-5, k=2.0),
        Norm(5, 1, PIXELS, scale=4e-5, k=1.0),
    ],
    ids=["channels", "pixels"],
)
def test_a_norm_image_by_image_equals_the_whole_batch(norm):
    """A CPU goes image by image, other devices normalize the batch at once."""
    x = torch.randn(3, 8, 5, 5) * 50
    grad = torch.randn(3, 8, 5, 5)
    y = normalize_by_image(x, *norm)
    dx = compute_gradient_by_image(x, grad, *norm)
    torch.testing.assert_close(y, normalize(x, norm), rtol=0, atol=0)
    torch.testing.assert_close(dx, compute_gradient(x, grad, norm), rtol=0, atol=0)


def test_response_norm_in_bfloat16_is_computed_in_float32():
    x = torch.randn(1, 8, 3, 3, dtype=torch.bfloat16) * 50
    norm = LocalResponseNorm()
    torch.testing.assert_close(norm(x), norm(x.float()).bfloat16(), rtol=0, atol=0)


def test_spatial_norm_equals_a_loop():
    x = np.random.default_rng(0).normal(size=(2, 3, 9, 8)) * 200
    expected = np.empty_like(x)
    for i in range(9):
        for j in range(8):
            window = x[:, :, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3]
            squares = (window**2).sum((2, 3))
            expected[:, :, i, j] = x[:, :, i, j] / (1 + 1e-3 / 25 * squares) ** 0.75
    y = SpatialResponseNorm()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-12)


def test_the_gradient_of_the_spatial_norm():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64) * 200
    assert torch.autograd.gradcheck(SpatialResponseNorm(), x.requires_grad_())


def test_dropout_does_not_scale_up():
    layer = Dropout(0.25)
    x = torch.ones(1000, 50)
    y = layer(x)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert abs(y.mean() - 0.75) < 0.01
    torch.testing.assert_close(layer.eval()(x), x * 0.75)


def test_windows_that_hang_over_the_edge_equal_a_loop():
    """conv1 at 224: the last window covers columns 216 to 226, and the last three count as zero."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    kernels = torch.randn(2, 3, 11, 11, dtype=torch.float64)
    y = F.conv2d(EdgePadding(11, 4)(x), kernels, stride=4)
    expected = np.zeros((2, 7, 7))
    for i in range(7):
        for j in range(7):
            patch = x[0, :, 4 * i : 4 * i + 11, 4 * j : 4 * j + 11]
            seen = kernels[..., : patch.shape[1], : patch.shape[2]]
            expected[:, i, j] = (seen * patch).sum((1, 2, 3))
    np.testing.assert_allclose(y[0].numpy(), expected, atol=1e-12)


def test_grouped_linear_equals_its_blocks():
    layer = GroupedLinear(8, 6, 2)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 8)
    halves = [x[:, :4] @ layer.weight[:3].T, x[:, 4:] @ layer.weight[3:].T]
    torch.testing.assert_close(layer(x), torch.cat(halves, 1) + layer.bias)


def test_the_authors_initial_weights():
    torch.manual_seed(0)
    net = AlexNet(num_classes=10, width=0.5)
    for layer in ("conv3", "conv4", "conv5"):
        assert net.get_parameter(f"{layer}.weight").std().item() == pytest.approx(0.03, rel=0.02)
    for layer in ("conv1", "conv2", "fc6", "fc7"):
        assert net.get_parameter(f"{layer}.weight").std().item() == pytest.approx(0.01, rel=0.02)
    biases = {name: value for name, value in net.named_parameters() if name.endswith("bias")}
    ones = {name for name, value in biases.items() if (value == 1).all()}
    assert ones == {"conv2.bias", "conv4.bias", "conv5.bias", "fc6.bias", "fc7.bias"}


@pytest.mark.parametrize("without", [2, 3, 4, 5, 6, 7])
def test_a_network_without_a_layer(without):
    net = AlexNet(num_classes=10, width=0.125, without=without)
    names = {name for name, _ in net.named_children()}
    left_out = {f"{kind}{without}" for kind in ("conv", "fc", "relu", "norm", "dropout")}
    assert not names & left_out
    assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 10)


def test_owt_takes_torchvisions_weights():
    torch.manual_seed(0)
    theirs = build_torchvision_alexnet(weights=None).eval()
    ours = build_network(
        "alexnet_owt",
        "model.stage1=[relu,pool]",
        "model.stage2=[relu,pool]",
        "model.num_classes=1000",
        "model.dropout=0.0",
    ).eval()
    weights = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
    ours.load_state_dict(weights)
    x = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("without", 1),
        ("activation", "gelu"),
        ("init", "xavier"),
        ("dropout", 1.0),
        ("crop", 20),
        ("stage1", ["batchnorm"]),
    ],
)
def test_an_invalid_value_is_reported_with_its_option(option, value):
    with pytest.raises(UserError, match=f"model.{option}="):
        AlexNet(width=0.05, num_classes=3, **{option: value})


def record_inputs(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The inputs of each convolution and linear layer in a forward pass."""
    inputs: dict[str, Tensor] = {}

    def add_hook(name: str, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(lambda _, given: inputs.update({name: given[0]}))

    for name, layer in net.named_children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            add_hook(name, layer)
    with torch.no_grad():
        assert torch.isfinite(net(x)).all()
    return inputs


@pytest.mark.parametrize("init", INITIAL_STDS)
def test_first_activations_have_the_scale_of_the_initial_weights(init):
    """Before its bias, a layer's outputs have σ · √(fan-in · mean square of the inputs)."""
    torch.manual_seed(0)
    net = AlexNet(num_classes=100, crop=131, init=init).eval()
    inputs = record_inputs(net, 60 * torch.randn(8, 3, 131, 131))
    layers = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6")
    for name, std in zip(layers, INITIAL_STDS[init], strict=True):
        layer = net.get_submodule(name)
        x = inputs[name].double()
        weight = layer.weight.detach().double()
        fan_in = weight[0].numel()
        if isinstance(layer, nn.Linear):
            y = F.linear(x, weight)
            square = (x**2).mean()
        else:
            # Borders see zeros: the mean over windows, by average pooling.
            y = F.conv2d(x, weight, None, layer.stride, layer.padding, 1, layer.groups)
            squares = (x**2).mean(1, keepdim=True)
            size = layer.kernel_size[0]
            square = F.avg_pool2d(squares, size, layer.stride, layer.padding).mean()
        expected = (std or (2 / fan_in) ** 0.5) * (fan_in * float(square)) ** 0.5
        assert y.std() == pytest.approx(expected, rel=0.15), name


def test_the_papers_text_gives_a_weaker_initial_signal_than_its_source():
    """The part of the logits that depends on the image: σ = 0.01 in three layers leaves a 27th."""
    signal = {}
    for init in ("authors", "paper_text"):
        torch.manual_seed(0)
        net = AlexNet(num_classes=100, crop=131, init=init).eval()
        with torch.no_grad():
            logits = net(60 * torch.randn(16, 3, 131, 131))
        signal[init] = float(logits.std(0).mean())
    assert signal["authors"] / signal["paper_text"] > 15
