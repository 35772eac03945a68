"""The update rule, the schedules and the error counts, against independent computations."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from alexnet.errors import UserError
from alexnet.training.metrics import Errors
from alexnet.training.optim import SGD, build_sgd
from alexnet.training.schedules import SchedulerConfig, linear, plateau, recorded, steps

OPTIONS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005}
BIAS_OPTIONS = {"bias_lr_factor": 2.0, "decay_biases": False}


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.fc8 = nn.Linear(4, 2)


# The update rule


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_the_update_rule_equals_a_float64_loop(momentum):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 3))
    v = np.zeros((2, 3))
    p = nn.Parameter(torch.from_numpy(w.copy()))
    optimizer = SGD([p], lr=0.01, momentum=momentum, weight_decay=0.0005)
    for step in range(20):
        lr = [0.01, 0.001, 0.0][step // 8]  # it falls, then the weights are frozen
        optimizer.param_groups[0]["lr"] = lr
        gradient = rng.normal(size=(2, 3))
        p.grad = torch.from_numpy(gradient)
        optimizer.step()
        if lr > 0:
            v = momentum * v - 0.0005 * lr * w - lr * gradient
            w = w + v
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-13)


def follow_weights(build_optimizer: Callable[..., torch.optim.Optimizer], lr_falls: bool):
    """The weights after ten steps, in whose middle the learning rate may fall."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = build_optimizer([p], lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(10):
        if lr_falls and step == 5:
            optimizer.param_groups[0]["lr"] = 0.01
        p.grad = torch.randn(5, dtype=torch.float64)
        optimizer.step()
    return p.detach()


def test_the_update_rule_equals_torchs_while_the_learning_rate_is_constant():
    ours = follow_weights(SGD, lr_falls=False)
    torchs = follow_weights(torch.optim.SGD, lr_falls=False)
    torch.testing.assert_close(ours, torchs, rtol=1e-13, atol=0)


def test_the_update_rule_differs_from_torchs_after_the_learning_rate_falls():
    ours = follow_weights(SGD, lr_falls=True)
    torchs = follow_weights(torch.optim.SGD, lr_falls=True)
    assert not torch.allclose(ours, torchs, rtol=1e-2)


def test_the_update_does_not_depend_on_the_memory_layout():
    """Gradient and velocity may be laid out unlike the weights, as after loading a checkpoint."""
    torch.manual_seed(0)
    start = torch.randn(2, 3, 4, 4)
    gradients = torch.randn(5, 2, 3, 4, 4)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(start.clone().to(memory_format=layout))
        optimizer = SGD([p], **OPTIONS)
        for gradient in gradients:
            p.grad = gradient
            optimizer.step()
            optimizer.state[p]["velocity"] = optimizer.state[p]["velocity"].contiguous()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("option", OPTIONS)
def test_negative_options_are_refused(option):
    with pytest.raises(UserError, match=f"optimizer.{option}=-1 must not be negative"):
        SGD([nn.Parameter(torch.zeros(1))], **{**OPTIONS, option: -1})


# Parameter groups


def test_biases_have_twice_the_learning_rate_and_no_decay():
    net = nn.Linear(2, 2)
    weights, biases = build_sgd(net, **OPTIONS, **BIAS_OPTIONS).param_groups
    assert weights["params"] == [net.weight]
    assert biases["params"] == [net.bias]
    assert (weights["lr"], weights["weight_decay"]) == (0.01, 0.0005)
    assert (biases["lr"], biases["weight_decay"]) == (0.02, 0.0)


def test_a_separate_layer_has_parameter_groups_of_its_own():
    net = TwoLayers()
    optimizer = build_sgd(net, **OPTIONS, **BIAS_OPTIONS, separate_layers=["conv1"])
    members = {group["name"]: group["params"] for group in optimizer.param_groups}
    assert members == {
        "weights": [net.fc8.weight],
        "biases": [net.fc8.bias],
        "conv1.weights": [net.conv1.weight],
        "conv1.biases": [net.conv1.bias],
    }


def test_a_separate_layer_must_be_in_the_network():
    with pytest.raises(UserError, match="no weights of conv9; its layers are conv1, fc8"):
        build_sgd(TwoLayers(), **OPTIONS, **BIAS_OPTIONS, separate_layers=["conv1", "conv9"])


# Schedules


def build_optimizer(*groups: str) -> SGD:
    """An optimizer with a learning rate of 1 and a parameter in each of these groups."""
    members = [{"name": name, "params": [nn.Parameter(torch.zeros(1))]} for name in groups]
    return SGD(members, lr=1.0, momentum=0.9, weight_decay=0.0)


def follow_schedule(
    optimizer: SGD, config: SchedulerConfig, count: int, errors: Sequence[float] | None = None
) -> list[float]:
    """The first group's learning rate at each of `count` epochs or steps."""
    scheduler: Any = config["scheduler"]
    optimizer.step()
    seen = []
    for i in range(count):
        seen.append(optimizer.param_groups[0]["lr"])
        if errors is None:
            scheduler.step()
        else:
            scheduler.step(errors[i])
    return seen


def test_steps_divide_the_learning_rate_after_the_named_epochs():
    optimizer = build_optimizer("weights")
    config = steps(optimizer, 91, 1, epochs=[25, 51, 79], factor=0.1)
    exponents = [round(-np.log10(lr)) for lr in follow_schedule(optimizer, config, 91)]
    assert exponents == [0] * 25 + [1] * 26 + [2] * 28 + [3] * 12


def test_plateau_divides_the_learning_rate_when_the_error_stalls_three_times_at_most():
    optimizer = build_optimizer("weights")
    config = plateau(optimizer, 12, 1, factor=0.1, patience=1, threshold=0.01, max_drops=3)
    seen = follow_schedule(optimizer, config, 12, errors=[0.5] * 12)
    assert seen == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001, 0.001, 0.001])


def test_plateau_leaves_the_learning_rate_while_the_error_falls():
    optimizer = build_optimizer("weights")
    config = plateau(optimizer, 8, 1, factor=0.1, patience=0, threshold=0.01, max_drops=3)
    falling = [0.9 - 0.02 * epoch for epoch in range(8)]
    assert follow_schedule(optimizer, config, 8, errors=falling) == [1.0] * 8


def test_linear_rises_during_the_warmup_and_falls_to_zero():
    optimizer = build_optimizer("weights")
    seen = follow_schedule(optimizer, linear(optimizer, 10, 1, warmup=0.2), 11)
    assert seen == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])


def test_the_warmup_must_be_a_fraction_of_the_run():
    with pytest.raises(UserError, match=r"schedule\.warmup=2 is a fraction"):
        linear(build_optimizer("weights"), 10, 1, warmup=2)


def read_learning_rate(entry: Any, step: int) -> float:
    """The recorded learning rate at a step of a run of 1,000 steps and 100 epochs."""
    config = recorded(build_optimizer("weights"), 1000, 10, learning_rates={"weights": entry})
    scheduler: Any = config["scheduler"]
    return scheduler.lr_lambdas[0](step)


CURVE = {"first": 0.02, "last": 5e-6}


@pytest.mark.parametrize("step", [0, 1, 499, 999])
def test_the_linear_and_exponential_shapes_equal_the_authors_formulas(step):
    progress = step / 1000
    expected = 0.02 * (1 - progress) + 5e-6 * progress
    assert read_learning_rate({"shape": "linear", **CURVE}, step) == pytest.approx(expected)
    power = np.log(5e-6) / np.log(0.02) - 1  # ExpLRS of src/lr.cu
    expected = 0.02 ** (1 + progress * power)
    assert read_learning_rate({"shape": "exp", **CURVE}, step) == pytest.approx(expected)


def test_the_dexp_shape_takes_equal_steps():
    middle = np.sqrt(0.02 * 5e-6)
    seen = []
    for step in (333, 334, 666, 667):
        seen.append(read_learning_rate({"shape": "dexp", "steps": 3, **CURVE}, step))
    assert seen == pytest.approx([0.02, middle, middle, 5e-6])


def test_a_curve_is_zero_from_its_stop_on():
    entry = {"shape": "linear", "stop": 50, **CURVE}
    assert read_learning_rate(entry, 499) > 0
    assert read_learning_rate(entry, 500) == 0


def test_a_listed_learning_rate_holds_from_its_epoch_on():
    entry = [[0, 0.01], [2.16, 0.001]]  # 21.6 steps
    assert read_learning_rate(entry, 21) == 0.01
    assert read_learning_rate(entry, 22) == 0.001


def test_a_group_without_an_entry_follows_the_other_weights():
    optimizer = build_optimizer("weights", "biases", "conv1.weights", "conv1.biases")
    entries = {"weights": [[0, 0.01]], "biases": [[0, 0.02]], "conv1.weights": [[0, 0.03]]}
    recorded(optimizer, 10, 1, learning_rates=entries)
    seen = [group["lr"] for group in optimizer.param_groups]
    assert seen == pytest.approx([0.01, 0.02, 0.03, 0.02])


@pytest.mark.parametrize(
    ("groups", "entries", "said"),
    [
        (
            ["weights", "fc8.weights"],
            {"weights": [[0, 1]], "conv1.weights": [[0, 1]], "conv1.biases": [[0, 1]]},
            r"groups for conv1: add optimizer.separate_layers=\[fc8,conv1\]",
        ),
        (["weights"], {"conv1": [[0, 1]]}, "learning_rates.conv1: choose weights, biases"),
        (["weights", "biases"], {"weights": [[0, 1]]}, "no entry for biases: add biases"),
        (["weights"], {"weights": []}, "weights: epochs must start at 0 and ascend"),
        (["weights"], {"weights": [[1, 0.1]]}, "weights: epochs must start at 0 and ascend"),
        (["weights"], {"weights": {"shape": "dexp", **CURVE}}, "dexp needs at least 2"),
    ],
)
def test_recorded_learning_rates_that_do_not_fit_are_refused(groups, entries, said):
    with pytest.raises(UserError, match=said):
        recorded(build_optimizer(*groups), 10, 1, learning_rates=entries)


# Error counts


def test_errors_equal_those_of_sorted_scores():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(200, 20))
    labels = rng.integers(0, 20, 200)
    weights = (rng.random(200) < 0.7).astype(np.float32)
    losses = rng.random(200)
    errors = Errors(20)
    for rows in np.array_split(np.arange(200), 3):
        errors.update(*(torch.from_numpy(x[rows]) for x in (scores, labels, weights, losses)))
    is_counted = weights > 0
    is_hit = np.argsort(-scores, axis=1) == labels[:, None]
    top1_misses = int((~is_hit[:, :1].any(axis=1) & is_counted).sum())
    top5_misses = int((~is_hit[:, :5].any(axis=1) & is_counted).sum())
    images = int(is_counted.sum())
    counts = {"top1_misses": top1_misses, "top5_misses": top5_misses, "images": images}
    assert errors.read_counts() == counts
    values = errors.compute()
    assert values["top1_error"] == pytest.approx(top1_misses / images)
    assert values["top5_error"] == pytest.approx(top5_misses / images)
    assert values["loss"] == pytest.approx(losses[is_counted].mean())


def test_no_image_is_a_top5_miss_with_fewer_classes():
    errors = Errors(3)
    errors.update(torch.eye(3), torch.tensor([1, 1, 1]), torch.ones(3), torch.ones(3))
    assert errors.read_counts() == {"top1_misses": 2, "top5_misses": 0, "images": 3}


def test_a_network_that_diverged_is_reported():
    errors = Errors(2)
    scores = torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])
    errors.update(scores, torch.tensor([0, 0]), torch.ones(2), torch.ones(2))
    with pytest.raises(UserError, match="not finite for 1 of 2 images: training has diverged"):
        errors.compute()


def test_losses_are_summed_exactly_in_a_bfloat16_module():
    errors = Errors(2)
    nn.Sequential(errors).to(torch.bfloat16)
    labels = torch.tensor([0, 1])
    for _ in range(2):
        for _ in range(1000):
            errors.update(torch.eye(2), labels, torch.ones(2), torch.full((2,), 0.5))
        assert errors.compute()["loss"] == 0.5
        errors.reset()
