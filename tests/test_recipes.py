"""The recipes of recorded networks do what their logs say.

Read back from the built optimizer, schedule and augmentation at every hundredth of an epoch.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from alexnet.data.augment import Augment

EPOCH_STEPS = 100  # so that 2.16 epochs are a whole number of steps
COLOR_STD = np.array([20.0, 37.0, 122.0])


class Moment(NamedTuple):
    """What a step trains with: each parameter group's options, and the color noise."""

    groups: dict[str, dict[str, float]]
    noise: float


def compose_training(*options: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(options))


def build_augment(config: DictConfig, size: int = 256) -> Augment:
    """The augmentation of a store whose mean is 0 and whose colors vary along the axes."""
    return instantiate(config.augment)(np.zeros((size, size, 3)), COLOR_STD, np.eye(3))


@cache
def list_moments(experiment: str) -> list[Moment]:
    """Every step of a whole run of a narrow network with epochs of 100 steps."""
    config = compose_training(f"experiment={experiment}")
    config.model.num_classes = 10
    config.model.width = 0.02
    optimizer = instantiate(config.optimizer)(instantiate(config.model))
    total_steps = config.trainer.max_epochs * EPOCH_STEPS
    schedule = instantiate(config.schedule)(optimizer, total_steps, EPOCH_STEPS)
    augment = build_augment(config)
    optimizer.step()
    moments = []
    for step in range(total_steps):
        groups = {group["name"]: dict(group) for group in optimizer.param_groups}
        moments.append(Moment(groups, augment.color_noise_at(step // EPOCH_STEPS)))
        schedule["scheduler"].step()
    return moments


def piecewise(*ends_and_values: float) -> list[float]:
    """[23, a, 51, b] is a until epoch 23 and b until epoch 51, at every hundredth of an epoch."""
    values: list[float] = []
    for end, value in zip(ends_and_values[::2], ends_and_values[1::2], strict=True):
        values += [value] * (round(end * EPOCH_STEPS) - len(values))
    return values


def equal_steps(first: float, last: float, count: int, epochs: int) -> list[float]:
    """`dexp` of src/lr.cu: progress in `count` equal intervals, each a power of last / first."""
    values = np.geomspace(first, last, count)
    return np.repeat(values, epochs * EPOCH_STEPS // count).tolist()


def stop_at(values: Sequence[float], epoch: int) -> list[float]:
    """The values until an epoch, then 0."""
    steps = epoch * EPOCH_STEPS
    return [*values[:steps], *[0.0] * (len(values) - steps)]


def automated_schedule(factor: int, conv1_stops: int, noise_stops: int) -> dict[str, list[float]]:
    """Nets 170: learning rates times `factor`; the epochs at which conv1 and the noise stop."""
    weights = equal_steps(0.01 * factor, 4e-5 * factor, 4, 95)
    biases = equal_steps(0.02 * factor, 0.002 * factor, 2, 95)
    return {
        "weights": weights,
        "biases": biases,
        "conv1.weights": stop_at(weights, conv1_stops),
        "conv1.biases": stop_at(biases, conv1_stops),
        "noise": piecewise(noise_stops, 0.1, 95, 0),
    }


# As logged in layer-params-<net>.cfg: learning rates of the groups, and the color noise.
# piecewise(25, 0.01, 51, 0.001) is 0.01 until epoch 25 and 0.001 until epoch 51.
RECORDED = {
    "net_145": {
        "weights": piecewise(25, 0.01, 51, 0.001, 79, 1e-4, 91, 1e-5),
        "biases": piecewise(91, 0.02),
        "conv1.weights": piecewise(25, 0.01, 51, 0.001, 67, 1e-4, 72, 1e-5, 91, 0),
        "conv1.biases": piecewise(72, 0.02, 91, 0),
        "noise": piecewise(67, 0.1, 91, 0),
    },
    "net_145_continued": {
        "weights": piecewise(
            25, 0.01, 51, 0.001, 79, 1e-4, 91, 1e-5, 107, 0.001, 124, 1e-4, 135, 1e-5
        ),
        "biases": piecewise(135, 0.02),
        "conv1.weights": piecewise(25, 0.01, 51, 0.001, 67, 1e-4, 72, 1e-5, 135, 0),
        "conv1.biases": piecewise(72, 0.02, 135, 0),
        "noise": piecewise(67, 0.1, 91, 0, 124, 0.1, 135, 0),
    },
    "net_145_2010": {
        "weights": piecewise(23, 0.01, 51, 0.001, 78, 1e-4, 93, 1e-5),
        "biases": piecewise(23, 0.02, 93, 0.002),
        "conv1.weights": piecewise(23, 0.01, 51, 0.001, 68, 1e-4, 72, 1e-5, 93, 0),
        "conv1.biases": piecewise(23, 0.02, 72, 0.002, 93, 0),
        "noise": piecewise(68, 0.1, 93, 0),
    },
    "net_170": automated_schedule(1, conv1_stops=74, noise_stops=68),
    "net_170_fade": automated_schedule(1, conv1_stops=74, noise_stops=68),
    "net_170_256": automated_schedule(2, conv1_stops=73, noise_stops=61),
    "six_conv_2009": {
        "weights": piecewise(7, 0.001),
        "biases": piecewise(7, 0.02),
        "conv6.weights": piecewise(2.16, 0.01, 7, 0.001),
        "fc6.weights": piecewise(2.16, 0.01, 7, 0.001),
        "fc8.weights": piecewise(2.16, 0.01, 7, 0.001),
        "fc8.biases": piecewise(7, 0.02),
        "noise": piecewise(7, 0.1),
    },
    "six_conv_2011": {
        "weights": piecewise(9, 0.001),
        "conv6.weights": piecewise(9, 0.001),
        "fc7.weights": piecewise(6, 0.01, 9, 0.001),
        "noise": piecewise(9, 0.1),
    },
    "six_conv": {
        "weights": piecewise(22, 0.001, 42, 1e-4, 54, 1e-5),
        "conv1.weights": piecewise(5, 1e-4, 7, 1e-5, 54, 0),
        "fc8.weights": piecewise(0.03, 0.001, 9, 0.01, 22, 0.001, 42, 1e-4, 54, 1e-5),
        "noise": piecewise(38, 0.1, 54, 0),
    },
    "six_conv_from_2009": {
        "weights": piecewise(22, 0.001, 42, 1e-4, 52, 1e-5),
        "conv1.weights": piecewise(3, 1e-4, 4, 1e-5, 52, 0),
        "noise": piecewise(38, 0.1, 52, 0),
    },
    "owt_2014": {
        "weights": equal_steps(0.01, 4e-5, 4, 90),
        "biases": equal_steps(0.02, 0.002, 2, 90),
        "noise": piecewise(90, 0.1),
    },
}


@pytest.mark.parametrize("name", RECORDED)
def test_batch_size_is_the_recorded_one(name):
    expected = 256 if name == "net_170_256" else 128
    assert compose_training(f"experiment={name}").data.batch_size == expected


@pytest.mark.parametrize("name", RECORDED)
def test_learning_rates_and_noise_are_the_recorded_ones(name):
    moments = list_moments(name)
    for group, expected in RECORDED[name].items():
        if group == "noise":
            assert [moment.noise for moment in moments] == expected
            continue
        learning_rates = [moment.groups[group]["lr"] for moment in moments]
        np.testing.assert_allclose(learning_rates, expected, rtol=1e-9, err_msg=group)


@pytest.mark.parametrize("name", RECORDED)
def test_momentum_and_decay_are_constant(name):
    for moment in list_moments(name):
        for group, options in moment.groups.items():
            assert options["momentum"] == 0.9
            assert options["weight_decay"] == (0.0005 if group.endswith("weights") else 0.0)


def test_without_noise_images_are_not_divided():
    """While there is noise, what the network sees is divided by 1 + its strength."""
    augment = build_augment(compose_training("experiment=net_145"))
    gray = torch.full((64, 256, 256, 3), 110, dtype=torch.uint8)
    ids = torch.arange(64)
    with_noise = augment.crop_randomly(gray, ids, 66)[:, :, 0, 0]
    without = augment.crop_randomly(gray, ids, 67)[:, :, 0, 0]
    assert (without == 110).all()
    shift = with_noise * 1.1 - 110  # 0.1 · deviation · a normal draw
    assert shift.std(0).tolist() == pytest.approx([2.0, 3.7, 12.2], rel=0.35)


def test_a_twentieth_of_the_rows_is_faded():
    options = ["augment.color_noise=0", "augment.crop=32"]
    plain = build_augment(compose_training("experiment=net_170", *options), size=40)
    fading = build_augment(compose_training("experiment=net_170_fade", *options), size=40)
    images = torch.randint(256, (64, 40, 40, 3), dtype=torch.uint8)
    faded_rows = 0
    for epoch in range(100):
        ids = torch.arange(64) + 64 * epoch
        crops = plain.crop_randomly(images, ids, epoch)
        results = fading.crop_randomly(images, ids, epoch)
        for row, result in zip(crops.split(32), results.split(32), strict=True):
            is_faded = torch.allclose(result, 0.75 * row + 0.25 * row.flip(0))
            faded_rows += is_faded
            assert is_faded or torch.equal(result, row)
    assert 3 <= faded_rows <= 20  # of 200, 10 expected


def test_a_crop_is_shared_by_32_images_on_any_number_of_devices():
    config = compose_training("experiment=net_145", "augment.color_noise=0")
    augment = build_augment(config)
    ramp = torch.arange(256, dtype=torch.uint8)
    image = (ramp[:, None] // 2 + ramp[None, :] // 2)[None, :, :, None]
    images = image.expand(128, 256, 256, 3).contiguous()
    ids = torch.randperm(10**6)[:128]
    crops = augment.crop_randomly(images, ids, 5)
    rows = crops.split(32)
    for row in rows:
        assert torch.equal(row, row[:1].expand_as(row))
    assert not torch.equal(rows[0], rows[1])
    first = augment.crop_randomly(images[:64], ids[:64], 5)
    second = augment.crop_randomly(images[64:], ids[64:], 5)
    assert torch.equal(crops, torch.cat([first, second]))
