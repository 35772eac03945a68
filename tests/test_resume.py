"""Resuming: an interrupted run continues with the next batch and equals the uninterrupted run.

It does so bit for bit by the same parallel strategy, and up to rounding by any other.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import (
    ON_ACCELERATOR,
    ROOT,
    STRATEGIES,
    RunCommand,
    read_events,
    read_losses,
    read_result,
    read_weights,
    require_devices,
    run_command,
)
from torch import nn

from alexnet.errors import UserError
from alexnet.training.checkpointing import (
    AtomicCheckpointIO,
    load_initial_weights,
    read_checkpoint,
    select_weights,
)


def assert_same_run(resumed: Path, uninterrupted: Path) -> None:
    assert read_result(resumed) == read_result(uninterrupted)
    assert read_losses(resumed) == read_losses(uninterrupted)
    weights = read_weights(resumed)
    for name, expected in read_weights(uninterrupted).items():
        assert torch.equal(weights[name], expected), name


def read_epoch_errors(folder: Path) -> list[float]:
    return [event.value for event in read_events(folder).Scalars("train/top1_error")]


# Interrupted runs


def kill_after_two_checkpoints(folder: Path, options: list[str]) -> None:
    """Trains in `folder` and kills all processes once two checkpoints have been published."""
    process = subprocess.Popen(
        [sys.executable, "train.py", *options, f"hydra.run.dir={folder}"],
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / "checkpoints" / "previous.ckpt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("strategy", ["one", "two", "towers"])
def test_a_run_killed_within_an_epoch_equals_the_uninterrupted_run(
    strategy, small_options, tmp_path
):
    """Two epochs of twelve steps."""
    require_devices(strategy)
    options = [*small_options, "data.batch_size=4", "trainer.max_epochs=2", ON_ACCELERATOR]
    options += [*STRATEGIES[strategy], "callbacks.last.minutes=0"]
    uninterrupted = tmp_path / "uninterrupted"
    finished = run_command("train.py", *options, f"hydra.run.dir={uninterrupted}")
    assert finished.returncode == 0, finished.stderr

    killed = tmp_path / "killed"
    kill_after_two_checkpoints(killed, options)
    checkpoint = read_checkpoint(killed / "checkpoints" / "last.ckpt")
    assert 0 < checkpoint["global_step"] < 24
    assert checkpoint["global_step"] != 12, "killed between the epochs"

    resumed = run_command("train.py", f"resume={killed}")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(killed, uninterrupted)


@pytest.mark.parametrize("step", [4, 6])
def test_a_run_that_dies_before_its_checkpoint_is_published_leaves_no_hole_in_a_curve(
    step, run_in_process, small_options, run_by_strategy, tmp_path, monkeypatch
):
    """The numbers of a step, and of an epoch of four, are logged after the checkpoint is saved."""
    save_checkpoint = AtomicCheckpointIO.save_checkpoint

    def save_and_die(self, checkpoint, path, storage_options=None):
        save_checkpoint(self, checkpoint, path)
        if checkpoint["global_step"] == step and Path(path).name == "next.ckpt":
            raise InterruptedError("dies here")

    options = [*small_options, "data.batch_size=12", "trainer.max_epochs=2"]
    options += ["callbacks.last.minutes=0", f"hydra.run.dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_die)
        with pytest.raises(SystemExit):  # as Hydra ends after a traceback
            run_in_process("train.py", *options)
    run_in_process("train.py", f"resume={tmp_path}")
    uninterrupted = run_by_strategy("one")
    assert_same_run(tmp_path, uninterrupted)
    assert len(read_epoch_errors(tmp_path)) == 2
    assert read_epoch_errors(tmp_path) == read_epoch_errors(uninterrupted)


def test_the_learning_rate_falls_as_in_the_uninterrupted_run(
    run_in_process, small_options, tmp_path
):
    """The plateau rule counts the epoch after which a run is interrupted."""
    options = [*small_options, "schedule.patience=0", "schedule.threshold=0.3"]
    uninterrupted = tmp_path / "uninterrupted"
    folder = tmp_path / "run"
    four_epochs = "trainer.max_epochs=4"
    run_in_process("train.py", *options, four_epochs, f"hydra.run.dir={uninterrupted}")
    run_in_process("train.py", *options, "trainer.max_epochs=2", f"hydra.run.dir={folder}")
    run_in_process("train.py", f"resume={folder}", four_epochs)
    assert_same_run(folder, uninterrupted)


def test_auto_resumes_the_run_in_a_named_folder(run_in_process, small_options, tmp_path):
    """The same command again continues the run; one that has finished is never started anew."""
    folder = tmp_path / "run"
    options = [*small_options, "resume=auto", f"hydra.run.dir={folder}"]
    run_in_process("train.py", *options, "trainer.max_epochs=1")
    run_in_process("train.py", *options, "trainer.max_epochs=2")
    assert read_result(folder)["epochs"] == 2
    assert read_result(folder)["steps"] == 12
    assert len(read_losses(folder)) == 12


# Corrupt and missing checkpoints


def flip_a_bit(file: Path) -> None:
    """Of a weight."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_the_previous_checkpoint_is_used_if_the_last_is_corrupt(run_by_strategy, tmp_path):
    folder = shutil.copytree(run_by_strategy("one"), tmp_path / "run")
    flip_a_bit(folder / "checkpoints" / "last.ckpt")
    resumed = run_command("train.py", f"resume={folder}", "trainer.max_epochs=3")
    assert resumed.returncode == 0, resumed.stderr
    assert "last.ckpt is corrupt" in resumed.stdout
    assert read_result(folder)["steps"] == 12


def test_a_run_with_only_corrupt_checkpoints_ends_in_one_line(run_by_strategy, tmp_path):
    folder = shutil.copytree(run_by_strategy("one"), tmp_path / "run")
    for name in ("last", "previous"):
        flip_a_bit(folder / "checkpoints" / f"{name}.ckpt")
    refused = run_command("train.py", f"resume={folder}", "trainer.max_epochs=3")
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "previous.ckpt is corrupt or incomplete" in refused.stderr


def test_a_run_without_a_best_checkpoint_finishes_and_is_reported(
    run_in_process, small_options, tmp_path
):
    folder = tmp_path / "run"
    report = tmp_path / "report"
    options = [*small_options, "trainer.max_epochs=1", "~callbacks.best"]
    run_in_process("train.py", *options, f"hydra.run.dir={folder}")
    assert read_result(folder)["best_top1_error"] is None
    run_in_process("report.py", f"runs={folder}", f"hydra.run.dir={report}")
    assert (report / "report.html").is_file()


def test_a_truncated_checkpoint_is_named(tmp_path):
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}}, file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"last\.ckpt is corrupt or incomplete"):
        read_checkpoint(file)


# Weights of another network


class SmallNet(nn.Module):
    def __init__(self, units: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.fc8 = nn.Linear(4, units)


def save_network(net: nn.Module, folder: Path) -> Path:
    """A checkpoint of a run in `folder`."""
    file = folder / "checkpoints" / "last.ckpt"
    file.parent.mkdir()
    torch.save({"state_dict": {f"net.{name}": x for name, x in net.state_dict().items()}}, file)
    return file


def test_weights_of_another_network_are_refused(tmp_path):
    checkpoint = read_checkpoint(save_network(SmallNet(units=2), tmp_path))
    said = r"another network: fc8\.weight is \(2, 4\) in the checkpoint, \(3, 4\) in the network"
    with pytest.raises(UserError, match=said):
        select_weights(SmallNet(units=3), checkpoint)


def test_initial_weights_are_copied_into_the_chosen_layers(tmp_path):
    parent = SmallNet(units=2)
    net = SmallNet(units=3)
    before = net.fc8.weight.clone()
    load_initial_weights(net, save_network(parent, tmp_path), ["conv1"])
    assert torch.equal(net.conv1.weight, parent.conv1.weight)
    assert torch.equal(net.fc8.weight, before)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (None, r"fc8\.weight is \(2, 4\) in the checkpoint"),
        (["conv1", "conv9"], "the network has no weights of conv9"),
    ],
)
def test_initial_weights_that_do_not_fit_are_refused(layers, said, tmp_path):
    file = save_network(SmallNet(units=2), tmp_path)
    with pytest.raises(UserError, match=rf"start\.run={tmp_path} does not fit: {said}"):
        load_initial_weights(SmallNet(units=3), file, layers)


# Other parallel strategies

RESUMABLE = ("one", "two", "towers", "hybrid", "two pairs of towers")
# Each pair of strategies is tested with `-m long`; by default, each strategy and the next.
DEFAULT_PAIRS = set(itertools.pairwise([*RESUMABLE, RESUMABLE[0]]))


def list_pairs() -> list[object]:
    pairs: list[object] = []
    for pair in itertools.product(RESUMABLE, RESUMABLE):
        marks = [] if pair in DEFAULT_PAIRS else [pytest.mark.long]
        pairs.append(pytest.param(*pair, marks=marks))
    return pairs


@pytest.fixture(scope="session")
def resume_by_strategy(run_by_strategy, tmp_path_factory) -> Callable[[str, str], Path]:
    """Folder of a run of two epochs by one strategy and a third by another."""

    def resume(first: str, second: str) -> Path:
        require_devices(second)
        folder = tmp_path_factory.mktemp("resumed") / "run"
        shutil.copytree(run_by_strategy(first), folder)
        options = list(STRATEGIES[second])
        if not any(option.startswith("parallel=") for option in options):
            options.append("parallel=auto")
        finished = run_command("train.py", f"resume={folder}", "trainer.max_epochs=3", *options)
        assert finished.returncode == 0, finished.stderr
        return folder

    return resume


@pytest.fixture(scope="session")
def three_epochs(resume_by_strategy) -> Path:
    return resume_by_strategy("one", "one")


@pytest.mark.parametrize(("first", "second"), list_pairs())
def test_a_run_resumes_by_any_other_strategy(
    first: str,
    second: str,
    resume_by_strategy: Callable[[str, str], Path],
    three_epochs: Path,
    run_in_process: RunCommand,
):
    folder = resume_by_strategy(first, second)
    counts = read_result(folder)["val_counts"]
    assert counts == read_result(three_epochs)["val_counts"]
    weights = read_weights(folder)
    expected = read_weights(three_epochs)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6, msg=name)

    run_in_process("evaluate.py", f"run={folder}", "checkpoint=last")
    errors = read_result(folder / "checkpoints")["center crop"]
    assert round(errors["top1_error"] * 1003) == counts["top1_misses"]
