"""Whole runs by the commands: what they leave behind, resuming, and every parallel strategy."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import (
    ON_ACCELERATOR,
    STRATEGIES,
    read_events,
    read_losses,
    read_result,
    read_weights,
    require_devices,
    run_command,
)
from omegaconf import OmegaConf

from alexnet.errors import UserError
from alexnet.nets.alexnet import AlexNet
from alexnet.nets.cifar import CifarConv4
from alexnet.parallel.strategies import HybridParallel, ParallelStrategy, TowerParallel
from alexnet.training.train import count_epoch_batches


@pytest.fixture
def finished_run(run_in_process, small_options, tmp_path) -> Path:
    """The folder of a run of two epochs."""
    folder = tmp_path / "run"
    options = ["trainer.max_epochs=2", "callbacks.progress.seconds=0", f"hydra.run.dir={folder}"]
    run_in_process("train.py", *small_options, *options)
    return folder


def assert_close_weights(actual: Path, expected: Path) -> None:
    weights = read_weights(actual)
    for name, value in read_weights(expected).items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6, msg=name)


def assert_equal_weights(actual: Path, expected: Path) -> None:
    weights = read_weights(actual)
    for name, value in read_weights(expected).items():
        assert torch.equal(weights[name], value), name


def test_result_and_facts(finished_run):
    result = read_result(finished_run)
    assert result["epochs"] == 2
    assert result["steps"] == 12
    assert result["val_counts"]["images"] == 1003
    facts = json.loads((finished_run / "run.json").read_text())
    assert facts["seed"] == 0
    assert {"torch", "lightning"} <= set(facts["versions"])
    assert "git_commit" in facts


def test_checkpoints(finished_run):
    folder = finished_run / "checkpoints"
    assert {file.stem for file in folder.iterdir()} == {"best", "last", "previous"}
    assert torch.load(folder / "best.ckpt", weights_only=True)["classes"] == list("abcde")


def test_the_log_starts_with_what_the_run_uses(finished_run):
    log = (finished_run / "train.log").read_text()
    summary = log.splitlines()[:8]
    for words in (
        "AlexNet at 0.125 of its width",
        "parameters, dropout 0.5",
        "48 training and 1,003 validation images, 5 classes",
        "epochs: 2, each of 6 batches; batch size 8, learning rate 0.01",
        "threads each, 32-true",
    ):
        assert any(words in line for line in summary), words


@pytest.mark.parametrize(("limit", "batches"), [(None, 12), (5, 5), (20, 12), (0.5, 6), (1.0, 12)])
def test_the_summary_counts_the_batches_that_are_trained(limit, batches):
    config = OmegaConf.create(
        {"data": {"batch_size": 8}, "trainer": {"limit_train_batches": limit}}
    )
    assert count_epoch_batches(config, images=100) == batches


def test_the_log_has_progress_and_errors(finished_run):
    log = (finished_run / "train.log").read_text()
    assert "ETA" in log
    assert "epoch 2  validation: top-1 error" in log


def test_no_line_of_the_log_has_a_path_of_a_library(finished_run):
    assert "site-packages" not in (finished_run / "train.log").read_text()


def test_a_short_run_prints_no_path_of_a_library(small_options, tmp_path):
    """Its epoch is shorter than the logging interval, of which Lightning warns."""
    options = ["trainer.max_epochs=1", "trainer.log_every_n_steps=50", f"hydra.run.dir={tmp_path}"]
    finished = run_command("train.py", *small_options, *options)
    assert finished.returncode == 0, finished.stderr
    assert "site-packages" not in finished.stdout + finished.stderr
    assert "log_every_n_steps" in finished.stdout


def test_tensorboard(finished_run):
    events = read_events(finished_run)
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "train/top1_error", "val/top1_error", "val/top5_error"} <= scalars
    assert {"val/loss", "hp/top1_error", "lr-SGD/weights"} <= scalars
    assert {"speed/images_per_second", "speed/data_wait"} <= scalars
    last = events.Scalars("val/top1_error")[-1].value
    assert last == pytest.approx(read_result(finished_run)["final"]["val/top1_error"])
    assert {"conv1/kernels", "validation/predictions"} <= set(events.Tags()["images"])


def test_evaluation_finds_the_errors_of_training(finished_run, run_in_process):
    run_in_process("evaluate.py", f"run={finished_run}", "checkpoint=last")
    evaluated = read_result(finished_run / "checkpoints")
    expected = read_result(finished_run)["final"]["val/top1_error"]
    assert evaluated["center crop"]["top1_error"] == pytest.approx(expected)
    assert evaluated["ten views"]["top5_error"] == 0  # of five classes


def test_a_run_without_a_logger(run_in_process, small_options, tmp_path):
    options = ["logger=none", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}"]
    run_in_process("train.py", *small_options, *options)
    assert read_result(tmp_path)["epochs"] == 1
    assert not (tmp_path / "tensorboard").exists()


def test_checkpoints_every_half_minute_are_accepted(run_in_process, small_options, tmp_path):
    options = ["callbacks.last.minutes=0.5", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}"]
    run_in_process("train.py", *small_options, *options)
    assert read_result(tmp_path)["steps"] == 6


def test_a_resumed_run_equals_the_uninterrupted_one(
    finished_run, run_in_process, small_options, tmp_path
):
    uninterrupted = tmp_path / "uninterrupted"
    options = ["trainer.max_epochs=4", f"hydra.run.dir={uninterrupted}"]
    run_in_process("train.py", *small_options, *options)
    moved = finished_run.rename(tmp_path / "moved")
    run_in_process("train.py", f"resume={moved}", "trainer.max_epochs=4")
    assert not finished_run.exists()
    assert read_result(moved) == read_result(uninterrupted)
    for folder in (moved, uninterrupted):
        assert len(read_events(folder).Images("conv1/kernels")) == 4
    assert_equal_weights(moved, uninterrupted)


def test_a_checkpoint_of_another_network_is_refused(finished_run):
    finished = run_command("train.py", f"resume={finished_run}", "model.width=0.25")
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert "another network: conv1.weight is (12," in line


def test_learning_rates_of_a_resumed_run_can_not_be_changed(finished_run):
    """They lie in its checkpoint, so a new one would have no effect."""
    options = ["optimizer.lr=1.0", "schedule.factor=0.1", "trainer.max_epochs=3"]
    finished = run_command("train.py", f"resume={finished_run}", *options)
    assert finished.returncode == 1
    assert "leave out optimizer.lr=1.0, or start a new run" in finished.stderr


def test_resume_auto_passes_over_a_run_that_failed_at_once(run_in_process, small_options, tmp_path):
    """A later folder without a checkpoint, as a wrong option leaves it, is not a run to resume."""
    runs = tmp_path / "runs"
    first = runs / "1_interrupted"
    options = ["trainer.max_epochs=1", f"hydra.run.dir={first}"]
    run_in_process("train.py", *small_options, *options)
    (first / "result.json").unlink()
    failed = runs / "2_failed"
    with pytest.raises(SystemExit):
        run_in_process("train.py", *small_options, "optimizer.lr=-1", f"hydra.run.dir={failed}")
    run_dir = f"hydra.run.dir=${{run_folder:auto,{runs}/3_new}}"
    run_in_process("train.py", "resume=auto", "trainer.max_epochs=2", run_dir)
    assert read_result(first)["epochs"] == 2
    assert not (runs / "3_new").exists()


@pytest.mark.parametrize(
    ("precision", "steps", "tolerance"), [("64-true", 8, 1e-5), ("bf16-true", 1, 0.01)]
)
def test_other_precisions(
    precision, steps, tolerance, run_by_strategy, small_options, run_in_process, tmp_path
):
    """Weights in bfloat16 soon differ; the last loss is the one that evaluate.py finds."""
    options = ["data.batch_size=12", "trainer.max_epochs=2", f"trainer.precision={precision}"]
    run_in_process("train.py", *small_options, *options, f"hydra.run.dir={tmp_path}")
    expected = read_losses(run_by_strategy("one"))[:steps]
    assert read_losses(tmp_path)[:steps] == pytest.approx(expected, rel=tolerance)
    run_in_process("evaluate.py", f"run={tmp_path}", "checkpoint=last")
    evaluated = read_result(tmp_path / "checkpoints")["center crop"]["loss"]
    assert evaluated == pytest.approx(read_result(tmp_path)["final"]["val/loss"], rel=0.01)


def test_diverged_training_ends_with_the_fix(run_in_process, small_options, tmp_path, capfd):
    options = ["optimizer.lr=1e30", "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}"]
    with pytest.raises(SystemExit, match="1"):
        run_in_process("train.py", *small_options, *options)
    assert "lower optimizer.lr" in capfd.readouterr().err


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "one"])
def test_every_strategy_trains_the_same(run_by_strategy, strategy):
    alone = run_by_strategy("one")
    together = run_by_strategy(strategy)
    assert len(read_losses(alone)) == 8
    assert read_losses(together) == pytest.approx(read_losses(alone), rel=1e-5)
    assert read_result(together)["val_counts"] == read_result(alone)["val_counts"]
    assert read_result(alone)["val_counts"]["images"] == 1003
    assert_close_weights(together, alone)


def mark_long(*strategies: str) -> list[object]:
    return [pytest.param(strategy, marks=pytest.mark.long) for strategy in strategies]


LONG_STRATEGIES = mark_long("two", "fsdp", "towers", "two pairs of towers")


@pytest.mark.parametrize("strategy", ["one", "hybrid", *LONG_STRATEGIES])
def test_two_accumulated_halves_are_one_batch(strategy, run_by_strategy, small_options, tmp_path):
    options = ["data.batch_size=6", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=2"]
    options += [*STRATEGIES[strategy], ON_ACCELERATOR, f"hydra.run.dir={tmp_path}"]
    finished = run_command("train.py", *small_options, *options)
    assert finished.returncode == 0, finished.stderr
    assert read_result(tmp_path)["steps"] == 8
    assert_close_weights(tmp_path, run_by_strategy("one"))


@pytest.mark.parametrize("strategy", ["hybrid", *LONG_STRATEGIES])
@pytest.mark.parametrize("algorithm", ["norm", *mark_long("value")])
def test_bfloat16_and_clipping_in_every_strategy(
    strategy, algorithm, run_by_strategy, small_options, tmp_path
):
    """Losses stay near those of float32, in which nothing is clipped at these limits."""
    options = ["data.batch_size=12", "trainer.max_epochs=2", "trainer.precision=bf16-mixed"]
    options += ["trainer.gradient_clip_val=1000", f"trainer.gradient_clip_algorithm={algorithm}"]
    options += [*STRATEGIES[strategy], ON_ACCELERATOR, f"hydra.run.dir={tmp_path}"]
    finished = run_command("train.py", *small_options, *options)
    assert finished.returncode == 0, finished.stderr
    expected = read_losses(run_by_strategy("one"))
    assert read_losses(tmp_path) == pytest.approx(expected, rel=0.05)


def test_processes_share_one_folder(run_by_strategy):
    folder = run_by_strategy("two")
    assert {place.name for place in folder.parent.iterdir() if place.is_dir()} <= set(STRATEGIES)
    events = list((folder / "tensorboard").glob("events*"))
    assert len(events) == 2  # the scalars, and the HPARAMS tab


def test_a_run_resumes_with_another_strategy(finished_run, run_in_process, tmp_path):
    require_devices("towers")
    alone = shutil.copytree(finished_run, tmp_path / "alone")
    run_in_process("train.py", f"resume={alone}", "trainer.max_epochs=3")
    towers = ["trainer.max_epochs=3", "parallel=towers", "trainer.devices=2"]
    finished = run_command("train.py", f"resume={finished_run}", *towers)
    assert finished.returncode == 0, finished.stderr
    assert read_result(finished_run)["val_counts"] == read_result(alone)["val_counts"]
    assert_close_weights(finished_run, alone)
    again = ["trainer.max_epochs=4", "parallel=auto", "trainer.devices=1"]
    run_in_process("train.py", f"resume={finished_run}", *again)
    assert read_result(finished_run)["epochs"] == 4


class Refused(NamedTuple):
    """A network that a strategy can't train on so many devices, and the reason."""

    strategy: ParallelStrategy
    network: torch.nn.Module
    devices: int
    precision: str
    message: str


def list_refused() -> list[Refused]:
    towers = TowerParallel(group_size=2, timeout=60)
    hybrid = HybridParallel(group_size=2, timeout=60)
    alexnet = AlexNet(width=0.1)
    silent = AlexNet(width=0.1, communicate=False)
    return [
        Refused(towers, alexnet, 3, "32-true", "devices in groups of 2, but there are 3"),
        Refused(towers, AlexNet(width=0.1, towers=1), 2, "32-true", "a network of 2 towers"),
        Refused(towers, silent, 2, "32-true", "towers that communicate"),
        Refused(towers, alexnet, 2, "16-mixed", "use bf16-mixed"),
        Refused(
            HybridParallel(group_size=3, timeout=60), alexnet, 3, "32-true", "fc6 has 410 units"
        ),
        Refused(hybrid, CifarConv4(), 2, "32-true", "needs an AlexNet"),
    ]


@pytest.mark.parametrize("case", list_refused(), ids=lambda case: case.message)
def test_networks_that_a_strategy_can_not_train_are_refused(case):
    with pytest.raises(UserError, match=case.message):
        case.strategy.check(case.network, case.devices, case.precision)


@pytest.fixture
def sweep(small_options, tmp_path):
    """Runs a sweep over batch sizes on two devices in a folder with special characters."""
    require_devices("two")
    folder = tmp_path / "a=b,c"

    def run_sweep(batch_sizes: str):
        options = [option for option in small_options if "batch_size" not in option]
        options += ["trainer.max_epochs=1", "trainer.devices=2", f"data.batch_size={batch_sizes}"]
        return run_command("train.py", "-m", *options, f"hydra.sweep.dir='{folder}'")

    return run_sweep, folder


def test_a_sweep_resumes_and_skips_finished_jobs(sweep):
    run_sweep, folder = sweep
    finished = run_sweep("7,8")
    assert finished.returncode == 1
    assert "is not divisible by 2 devices" in finished.stderr
    assert "failed" in finished.stdout
    assert not (folder / "0" / "result.json").exists()
    assert read_result(folder / "1")["steps"] == 6
    before = (folder / "1" / "result.json").stat().st_mtime_ns
    other = run_sweep("6,8")
    assert other.returncode == 1
    assert "holds another job" in other.stderr + other.stdout
    (folder / "0" / ".hydra" / "overrides.yaml").unlink()
    again = run_sweep("6,8")
    assert again.returncode == 0, again.stderr
    assert (folder / "1" / "result.json").stat().st_mtime_ns == before
    assert read_result(folder / "0")["steps"] == 8
