"""What a run shows while it trains, and that it needs neither a logger nor a terminal."""

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import read_events, read_result
from torch import nn

from alexnet.data.datamodule import StoreData
from alexnet.errors import UserError
from alexnet.parallel.strategies import DataParallel
from alexnet.training.callbacks import CheckRanksAgree
from alexnet.training.figures import draw_kernels, stack_images
from alexnet.training.module import Classifier

TAG = "train/images_until_learning"
# A network whose first outputs are the same for every image.
AT_CHANCE = ["model.init=authors", "augment.scale=0.001", "optimizer.bias_lr_factor=1"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_run_finishes_without_a_logger_and_a_log_on_the_terminal(
    is_terminal, run_in_process, small_options, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    options = ["logger=none", "hydra.job_logging.root.handlers=[file]", "trainer.max_epochs=1"]
    options += ["callbacks.last.minutes=0.5", f"hydra.run.dir={tmp_path}"]
    run_in_process("train.py", *small_options, *options)
    assert read_result(tmp_path)["steps"] == 6
    assert not (tmp_path / "tensorboard").exists()


def test_a_loss_stuck_at_chance_is_warned_about(run_in_process, small_options, tmp_path):
    options = [*AT_CHANCE, "optimizer.lr=0", "callbacks.stuck_loss.images=80"]
    options += ["trainer.max_epochs=2", f"hydra.run.dir={tmp_path}"]
    run_in_process("train.py", *small_options, *options)
    log = (tmp_path / "train.log").read_text()
    assert f"stuck at chance, within 1 % of {math.log(5):.2f}, for 80 images" in log
    assert TAG not in read_events(tmp_path).Tags()["scalars"]


def test_the_images_until_learning_are_logged_and_may_end_the_run(
    run_in_process, small_options, tmp_path
):
    options = ["trainer.max_epochs=4", "callbacks.stuck_loss.stop=true"]
    run_in_process("train.py", *small_options, *options, f"hydra.run.dir={tmp_path}")
    (event,) = read_events(tmp_path).Scalars(TAG)
    steps = read_result(tmp_path)["steps"]
    assert steps < 24
    assert event.value == 8 * steps


def build_module(config: dict[str, Any]) -> Classifier:
    return Classifier(
        net=nn.Linear(2, 2),
        classes=["a", "b"],
        optimizer=lambda net: torch.optim.SGD(net.parameters()),
        schedule=lambda optimizer, total_steps, epoch_steps: {},
        parallel=DataParallel(False, 60),
        seed=0,
        config=config,
    )


def test_ranks_with_other_options_are_refused(small_store, monkeypatch):
    """As if a second machine had been started with another seed and another model."""
    data = StoreData(str(small_store.folder), None, 8, None, lambda *statistics: None, 0)
    trainer: Any = SimpleNamespace(world_size=2, datamodule=data)
    config: dict[str, Any] = dict.fromkeys(CheckRanksAgree.COMPARED, 0)

    def gather(gathered: list[dict[str, Any]], own: dict[str, Any]) -> None:
        gathered[:] = [own, {**own, "seed": 1, "model": {"width": 2}}]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    with pytest.raises(UserError, match="ranks disagree on seed, model: start every rank"):
        CheckRanksAgree().on_fit_start(trainer, build_module(config))


def test_kernels_are_drawn_by_tower_on_one_scale():
    weight = torch.zeros(26, 3, 2, 2)
    weight[0] = -1.0
    weight[25] = 1.0
    first, second = draw_kernels(weight, towers=2)
    assert first.size == second.size == (12 * 3 - 1, 2 * 3 - 1)
    assert first.getpixel((0, 0)) == (0, 0, 0, 255)
    assert first.getpixel((3, 0)) == (128, 128, 128, 255)
    assert first.getpixel((2, 0)) == (0, 0, 0, 0), "a gap between two kernels"
    assert second.getpixel((0, 3)) == (255, 255, 255, 255), "the 13th kernel is in the second row"


def test_stacked_images_are_enlarged():
    towers = draw_kernels(torch.rand(4, 3, 2, 2), towers=2)
    image = stack_images(towers, zoom=4)
    assert image.size == (4 * 5, 4 * (2 + 1 + 2))
    assert image.getpixel((19, 19)) == towers[1].getpixel((4, 1))
