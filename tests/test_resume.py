"""A run that was broken off goes on with the next batch and is the unbroken run, bit for bit; in any other form it is
that to rounding."""

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
from conftest import FORMS, ON, ROOT, board, losses, need, result, run

from alexnet.run_folder import find_checkpoint
from alexnet.training.checkpointing import AtomicIO


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(find_checkpoint(folder, "last"), weights_only=True)["state_dict"]


def assert_same(resumed: Path, whole: Path) -> None:
    assert result(resumed) == result(whole)
    assert losses(resumed) == losses(whole)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


@pytest.mark.parametrize("form", ["one", "two", "towers"])
def test_killed_within_an_epoch(form, small, tmp_path):
    """Two epochs of twelve steps; SIGKILL to all processes once two checkpoints lie there."""
    need(int(FORMS[form][0].split("=")[1]))
    options = [*small, "data.batch_size=4", "trainer.max_epochs=2", ON, *FORMS[form]]
    options += ["callbacks.last.minutes=0"]
    assert run("train.py", *options, f"hydra.run.dir={tmp_path / 'whole'}").returncode == 0
    killed = tmp_path / "killed"
    command = [sys.executable, "train.py", *options, f"hydra.run.dir={killed}"]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    while not (killed / "checkpoints" / "previous.ckpt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = torch.load(find_checkpoint(killed, "last"), weights_only=True)["global_step"]
    assert 0 < done < 24 and done != 12
    resumed = run("train.py", f"resume={killed}")
    assert resumed.returncode == 0, resumed.stderr
    assert_same(killed, tmp_path / "whole")


@pytest.mark.parametrize("step", [4, 6])
def test_broken_off_right_after_a_checkpoint_was_written(
    step, here, small, by_form, tmp_path, monkeypatch
):
    """The numbers of a step, and of an epoch of four, are logged only later: no hole may stay in a curve."""
    options = [*small, "data.batch_size=12", "trainer.max_epochs=2", "callbacks.last.minutes=0"]
    save = AtomicIO.save_checkpoint

    def save_and_break(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path)
        if checkpoint["global_step"] == step and Path(path).name == "next.ckpt":
            raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(AtomicIO, "save_checkpoint", save_and_break)
        here("train.py", *options, f"hydra.run.dir={tmp_path}")
    here("train.py", f"resume={tmp_path}")
    assert_same(tmp_path, by_form("one"))
    resumed, whole = (
        [e.value for e in board(f).Scalars("train/top1_error")] for f in (tmp_path, by_form("one"))
    )
    assert resumed == whole and len(whole) == 2


def test_the_rate_falls_as_in_the_unbroken_run(here, small, tmp_path):
    """The plateau rule counts the epoch after which a run was broken off."""
    options = [*small, "schedule.patience=0", "schedule.threshold=0.3"]
    here("train.py", *options, "trainer.max_epochs=4", f"hydra.run.dir={tmp_path / 'whole'}")
    here("train.py", *options, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path / 'run'}")
    here("train.py", f"resume={tmp_path / 'run'}", "trainer.max_epochs=4")
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_torn_checkpoint_is_named_and_passed_over(by_form, tmp_path):
    folder = shutil.copytree(by_form("one"), tmp_path / "run")
    for name in ("last", "previous"):
        file = folder / "checkpoints" / f"{name}.ckpt"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1  # one bit of a weight
        if name == "previous":
            del data[1000:]
        file.write_bytes(data)
        done = run("train.py", f"resume={folder}", "trainer.max_epochs=3")
        if name == "last":
            assert done.returncode == 0 and "last.ckpt is torn: " in done.stdout, done.stderr
            assert result(folder)["steps"] == 12
            shutil.copy(
                by_form("one") / "checkpoints" / "last.ckpt",
                folder / "checkpoints" / "previous.ckpt",
            )
            (folder / "checkpoints" / "last.ckpt").unlink()
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "previous.ckpt is no whole checkpoint" in line


def test_auto_takes_the_run_that_has_not_ended(here, small, tmp_path, monkeypatch):
    """The same command again goes on; a run that ended is left alone."""
    options = [*small, "resume=auto", f"hydra.run.dir={tmp_path / 'run'}"]
    here("train.py", *options, "trainer.max_epochs=1")
    here("train.py", *options, "trainer.max_epochs=2")
    assert result(tmp_path / "run")["epochs"] == 2


def test_a_run_that_keeps_no_best_checkpoint_ends_and_is_reported(here, small, tmp_path):
    here(
        "train.py",
        *small,
        "trainer.max_epochs=1",
        "~callbacks.best",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert result(tmp_path / "run")["best_top1_error"] is None
    here("report.py", f"runs={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'report'}")
    assert (tmp_path / "report" / "report.html").is_file()


PAIRS = ("one", "two", "towers", "hybrid", "two pairs of towers")
SOME = set(zip(PAIRS, PAIRS[1:] + PAIRS[:1], strict=True))


@pytest.fixture(scope="session")
def resumed(by_form, tmp_path_factory) -> Callable[[str, str], Path]:
    """Folder of the run that began in one form and had a third epoch in another."""

    def folder(begun: str, ended: str) -> Path:
        need(int(FORMS[ended][0].split("=")[1]))
        copy = shutil.copytree(by_form(begun), tmp_path_factory.mktemp("pairs") / "run")
        parallel = FORMS[ended] if len(FORMS[ended]) > 1 else [*FORMS[ended], "parallel=auto"]
        done = run("train.py", f"resume={copy}", "trainer.max_epochs=3", *parallel)
        assert done.returncode == 0, done.stderr
        return copy

    return folder


@pytest.fixture(scope="session")
def never_moved(resumed) -> Path:
    return resumed("one", "one")


@pytest.mark.parametrize(
    "begun, ended",
    [
        pytest.param(*pair, marks=[] if pair in SOME else [pytest.mark.long])
        for pair in itertools.product(PAIRS, PAIRS)
    ],
)
def test_a_run_goes_on_in_any_other_form(begun, ended, resumed, never_moved, here):
    folder = resumed(begun, ended)
    assert result(folder)["val_counts"] == result(never_moved)["val_counts"]
    expected = weights(never_moved)
    assert {k: v.shape for k, v in weights(folder).items()} == {
        k: v.shape for k, v in expected.items()
    }
    for name, value in expected.items():
        torch.testing.assert_close(weights(folder)[name], value, rtol=1e-4, atol=1e-6, msg=name)
    here("evaluate.py", f"run={folder}", "checkpoint=last")
    errors = result(folder / "checkpoints")["center crop"]
    assert round(errors["top1_error"] * 1003) == result(folder)["val_counts"]["top1_misses"]
