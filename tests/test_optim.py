"""The update rule, the schedules and the metric."""

import numpy as np
import pytest
import torch

from alexnet.training.metrics import Errors
from alexnet.training.optim import SGD, build_sgd
from alexnet.training.schedules import drops, linear, recorded


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_update_rule_against_a_float64_loop(momentum):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(2, 3)), rng.normal(size=(20, 2, 3))
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = SGD([p], lr=0.01, momentum=momentum, weight_decay=0.0005)
    w, v = start.copy(), np.zeros((2, 3))
    for step, g in enumerate(gradients):
        rate = optimizer.param_groups[0]["lr"] = [0.01, 0.001, 0.0][step // 8]  # drops, then frozen
        p.grad = torch.from_numpy(g)
        optimizer.step()
        if rate:
            v = momentum * v - 0.0005 * rate * w - rate * g
            w = w + v
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-13)


def test_update_rule_equals_torchs_until_the_rate_drops():
    def trajectory(make, drop: bool) -> torch.Tensor:
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
        optimizer = make([p], lr=0.1, momentum=0.9, weight_decay=0.01)
        for step in range(10):
            if drop and step == 5:
                optimizer.param_groups[0]["lr"] = 0.01
            p.grad = torch.randn(5, dtype=torch.float64)
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(
        trajectory(SGD, False), trajectory(torch.optim.SGD, False), rtol=1e-13, atol=0
    )
    assert not torch.allclose(trajectory(SGD, True), trajectory(torch.optim.SGD, True), rtol=1e-2)


def test_biases_have_twice_the_rate_and_no_decay():
    net = torch.nn.Linear(2, 2)
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005}
    weights, biases = build_sgd(net, **options, bias_lr_factor=2.0, decay_biases=False).param_groups
    assert (weights["lr"], weights["weight_decay"]) == (0.01, 0.0005) and weights["params"] == [
        net.weight
    ]
    assert (biases["lr"], biases["weight_decay"]) == (0.02, 0.0) and biases["params"] == [net.bias]


def rates(schedule, epochs: int, errors=None) -> list[float]:
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = SGD([p], 1.0, 0.9, 0.0)
    optimizer.step()
    scheduler = schedule(optimizer, epochs)["scheduler"]
    seen = []
    for epoch in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step(*([errors[epoch]] if errors else []))
    return seen


def test_schedules():
    rule = {"patience": 1, "drops": 3, "factor": 0.1, "threshold": 0.01}
    recorded = rates(lambda o, n: drops(o, n, 1, epochs=[25, 51, 79], **rule), 91)
    assert [round(-np.log10(r)) for r in recorded] == [0] * 25 + [1] * 26 + [2] * 28 + [3] * 12
    stalled = rates(lambda o, n: drops(o, n, 1, epochs=None, **rule), 12, [0.5] * 12)
    assert stalled == pytest.approx(
        [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001, 0.001, 0.001]
    )
    assert rates(lambda o, n: linear(o, n, 1, warmup=0.2), 10)[:3] == [0.5, 1.0, 1.0]


def test_errors_against_counting():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 20)), rng.integers(0, 20, 200)
    weights = (rng.random(200) < 0.7).astype(np.float32)
    metric = Errors(20)
    for part in np.array_split(np.arange(200), 3):
        tensors = (torch.from_numpy(a[part]) for a in (scores, labels, weights))
        metric.update(*tensors, torch.ones(len(part)))
    ranks = np.argsort(-scores, 1)
    kept = weights > 0
    expected = [int((~(ranks[:, :k] == labels[:, None]).any(1) & kept).sum()) for k in (1, 5)]
    assert metric.counts() == {
        "top1_misses": expected[0],
        "top5_misses": expected[1],
        "images": int(kept.sum()),
    }
    metric.update(torch.full((1, 20), torch.nan), torch.tensor([0]), torch.ones(1), torch.ones(1))
    with pytest.raises(FloatingPointError, match="not finite for 1 of"):
        metric.compute()


def test_losses_are_summed_exactly_in_a_bfloat16_module():
    metric = Errors(2)
    torch.nn.Sequential(metric).to(torch.bfloat16)
    for _ in range(2):
        for _ in range(1000):
            metric.update(torch.eye(2), torch.tensor([0, 1]), torch.ones(2), torch.full((2,), 0.5))
        assert metric.compute()["loss"] == 0.5
        metric.reset()


def test_update_rule_in_any_layout():
    """The gradient and the velocity may lie otherwise than the weights, as after a checkpoint."""
    torch.manual_seed(0)
    start, gradients = torch.randn(2, 3, 4, 4), torch.randn(5, 2, 3, 4, 4)
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = torch.nn.Parameter(start.clone().to(memory_format=layout))
        optimizer = SGD([p], lr=0.01, momentum=0.9, weight_decay=0.0005)
        for gradient in gradients:
            p.grad = gradient
            optimizer.step()
            optimizer.state[p]["velocity"] = optimizer.state[p]["velocity"].contiguous()
        ends.append(p.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_shapes_of_the_rates():
    def at(entry: dict, step: int) -> float:
        optimizer = SGD(
            [{"name": "weights", "params": [torch.nn.Parameter(torch.zeros(1))]}], 1.0, 0.9, 0.0
        )
        scheduler = recorded(optimizer, 1000, 10, rates={"weights": entry})["scheduler"]
        return scheduler.lr_lambdas[0](step)

    ends = {"first": 0.02, "last": 5e-6}
    for step in (0, 1, 499, 999):
        p = step / 1000
        assert at({"shape": "linear", **ends}, step) == pytest.approx(0.02 * (1 - p) + 5e-6 * p)
        pow_ = np.log(5e-6) / np.log(0.02) - 1  # ExpLRS of src/lr.cu
        assert at({"shape": "exp", **ends}, step) == pytest.approx(0.02 ** (1 + p * pow_))
    assert [
        at({"shape": "dexp", "steps": 3, **ends}, step) for step in (333, 334, 666, 667)
    ] == pytest.approx([0.02, np.sqrt(0.02 * 5e-6), np.sqrt(0.02 * 5e-6), 5e-6])
    with pytest.raises(
        ValueError, match="conv9.weights: name these layers in optimizer.separate_layers"
    ):
        recorded(
            SGD([{"name": "weights", "params": []}], 1.0, 0.9, 0.0),
            1,
            1,
            rates={"conv9.weights": [[0, 1]]},
        )
