"""The recipes of recorded nets do what their logs say, read back from the built optimizer and augmenter."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

STEPS = 100  # of an epoch, so that 2.16 epochs are a whole number
COLORS = np.ones(3), np.eye(3)


def composed(*options: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(options))


def epochs_of(cfg: DictConfig) -> list[dict]:
    """Rate, momentum and decay of each group, and the color noise, at every hundredth of an epoch of a whole run."""
    cfg.model.num_classes, cfg.model.width = 10, 0.02
    optimizer = instantiate(cfg.optimizer)(instantiate(cfg.model))
    epochs = cfg.trainer.max_epochs
    scheduler = instantiate(cfg.schedule)(optimizer, epochs * STEPS, STEPS)["scheduler"]
    augment = instantiate(cfg.augment)(
        np.zeros((256, 256, 3)), np.array([20.0, 37, 122]), np.eye(3)
    )
    optimizer.step()
    seen = []
    for step in range(epochs * STEPS):
        groups = {group["name"]: dict(group) for group in optimizer.param_groups}
        seen.append(
            {name: (g["lr"], g["momentum"], g["weight_decay"]) for name, g in groups.items()}
            | {"noise": augment.color_noise_at(step // STEPS)}
        )
        scheduler.step()
    return seen


def spans(*ends_and_values: float) -> list[float]:
    """[23, a, 51, b] are a until 23 and b until 51, at every hundredth of an epoch."""
    values: list[float] = []
    for end, value in zip(ends_and_values[::2], ends_and_values[1::2], strict=True):
        values += [value] * (round(end * STEPS) - len(values))
    return values


def treads(first: float, last: float, count: int, epochs: int) -> list[float]:
    """`dexp` of src/lr.cu: progress in `count` equal intervals, each a power of last / first."""
    return list(np.repeat(np.geomspace(first, last, count), epochs * STEPS // count))


def stopped(values: list[float], epoch: int) -> list[float]:
    return values[: epoch * STEPS] + [0.0] * (len(values) - epoch * STEPS)


def automated(scale: int, conv1: int, noise: int) -> dict[str, list[float]]:
    """The falling steps of nets 170, rates times `scale`; conv1 rests and the noise ends after so many epochs."""
    weights, biases = (
        treads(0.01 * scale, 4e-5 * scale, 4, 95),
        treads(0.02 * scale, 0.002 * scale, 2, 95),
    )
    frozen = {"conv1.weights": stopped(weights, conv1), "conv1.biases": stopped(biases, conv1)}
    return {"weights": weights, "biases": biases, **frozen, "noise": spans(noise, 0.1, 95, 0)}


# Each as logged in layer-params-<net>.cfg: weights, biases, conv1's, color noise; epochs at which each ended.
RECORDED = {
    "authors": {
        "weights": spans(25, 0.01, 51, 0.001, 79, 1e-4, 91, 1e-5),
        "biases": spans(91, 0.02),
        "conv1.weights": spans(25, 0.01, 51, 0.001, 67, 1e-4, 72, 1e-5, 91, 0),
        "conv1.biases": spans(72, 0.02, 91, 0),
        "noise": spans(67, 0.1, 91, 0),
    },
    "net_145_continued": {
        "weights": spans(25, 0.01, 51, 0.001, 79, 1e-4, 91, 1e-5, 107, 0.001, 124, 1e-4, 135, 1e-5),
        "biases": spans(135, 0.02),
        "conv1.weights": spans(25, 0.01, 51, 0.001, 67, 1e-4, 72, 1e-5, 135, 0),
        "conv1.biases": spans(72, 0.02, 135, 0),
        "noise": spans(67, 0.1, 91, 0, 124, 0.1, 135, 0),
    },
    "net_145_2010": {
        "weights": spans(23, 0.01, 51, 0.001, 78, 1e-4, 93, 1e-5),
        "biases": spans(23, 0.02, 93, 0.002),
        "conv1.weights": spans(23, 0.01, 51, 0.001, 68, 1e-4, 72, 1e-5, 93, 0),
        "conv1.biases": spans(23, 0.02, 72, 0.002, 93, 0),
        "noise": spans(68, 0.1, 93, 0),
    },
    "net_170": automated(1, conv1=74, noise=68),
    "net_170_fade": automated(1, conv1=74, noise=68),
    "net_170_256": automated(2, conv1=73, noise=61),
    "six_conv_2009": {
        "weights": spans(7, 0.001),
        "biases": spans(7, 0.02),
        "conv6.weights": spans(2.16, 0.01, 7, 0.001),
        "fc6.weights": spans(2.16, 0.01, 7, 0.001),
        "fc8.weights": spans(2.16, 0.01, 7, 0.001),
        "fc8.biases": spans(7, 0.02),
        "noise": spans(7, 0.1),
    },
    "six_conv_2011": {
        "weights": spans(9, 0.001),
        "conv6.weights": spans(9, 0.001),
        "fc7.weights": spans(6, 0.01, 9, 0.001),
        "noise": spans(9, 0.1),
    },
    "six_conv": {
        "weights": spans(22, 0.001, 42, 1e-4, 54, 1e-5),
        "conv1.weights": spans(5, 1e-4, 7, 1e-5, 54, 0),
        "fc8.weights": spans(0.03, 0.001, 9, 0.01, 22, 0.001, 42, 1e-4, 54, 1e-5),
        "noise": spans(38, 0.1, 54, 0),
    },
    "six_conv_from_2009": {
        "weights": spans(22, 0.001, 42, 1e-4, 52, 1e-5),
        "conv1.weights": spans(3, 1e-4, 4, 1e-5, 52, 0),
        "noise": spans(38, 0.1, 52, 0),
    },
    "owt_2014": {
        "weights": treads(0.01, 4e-5, 4, 90),
        "biases": treads(0.02, 0.002, 2, 90),
        "noise": spans(90, 0.1),
    },
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_values(name):
    cfg = composed(f"experiment={name}")
    assert cfg.data.batch_size == (256 if name == "net_170_256" else 128)
    seen = epochs_of(cfg)
    for group, expected in RECORDED[name].items():
        if group == "noise":
            assert [moment["noise"] for moment in seen] == expected
            continue
        rates, momenta, decays = zip(*(moment[group] for moment in seen), strict=True)
        np.testing.assert_allclose(rates, expected, rtol=1e-9, err_msg=group)
        assert set(momenta) == {0.9} and set(decays) == (
            {0.0005} if group.endswith("weights") else {0.0}
        )


def test_noise_leaves_with_its_division():
    cfg = composed("experiment=net_145")
    augment = instantiate(cfg.augment)(
        np.zeros((256, 256, 3)), np.array([20.0, 37, 122]), np.eye(3)
    )
    white, ids = torch.full((64, 256, 256, 3), 110, dtype=torch.uint8), torch.arange(64)
    before, after = (augment.train(white, ids, epoch)[:, :, 0, 0] for epoch in (66, 67))
    assert (after == 110).all()
    shift = before * 1.1 - 110  # 0.1 · s · z, two or more deviations never in 64 draws' mean
    assert shift.std(0).tolist() == pytest.approx([2.0, 3.7, 12.2], rel=0.35)


def test_a_twentieth_of_the_rows_is_faded():
    plain, faded = (
        instantiate(
            composed(f"experiment={name}", "augment.color_noise=0", "augment.crop=32").augment
        )(np.zeros((40, 40, 3)), *COLORS)
        for name in ("net_170", "net_170_fade")
    )
    images = torch.randint(256, (64, 40, 40, 3), dtype=torch.uint8)
    rows = 0
    for epoch in range(100):
        ids = torch.arange(64) + 64 * epoch
        images, result = (augment.train(images, ids, epoch) for augment in (plain, faded))
        for first in (0, 32):
            expected = [0.75 * images[first + i] + 0.25 * images[first + 31 - i] for i in range(32)]
            rows += (whole := torch.allclose(result[first : first + 32], torch.stack(expected)))
            assert whole or torch.equal(result[first : first + 32], images[first : first + 32])
    assert 3 <= rows <= 20  # of 200, 10 expected


def test_a_crop_is_shared_by_32_images_on_any_number_of_devices():
    cfg = composed("experiment=net_145", "augment.color_noise=0")
    augment = instantiate(cfg.augment)(np.zeros((256, 256, 3)), *COLORS)
    ramp = torch.arange(256, dtype=torch.uint8)
    images = (
        (ramp[:, None] // 2 + ramp[None, :] // 2)[None, :, :, None]
        .expand(128, 256, 256, 3)
        .contiguous()
    )
    ids = torch.randperm(10**6)[:128]
    whole = augment.train(images, ids, 5)
    blocks = whole.unflatten(0, (4, 32))
    assert all(torch.equal(block, block[:1].expand_as(block)) for block in blocks)
    assert not torch.equal(blocks[0], blocks[1])
    halves = torch.cat(
        [augment.train(images[part], ids[part], 5) for part in (slice(0, 64), slice(64, 128))]
    )
    assert torch.equal(whole, halves)
