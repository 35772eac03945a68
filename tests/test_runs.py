"""Whole runs by the doors: what they leave behind, resuming, evaluating, and two and three processes."""

import json
from pathlib import Path

import pytest
import torch
from conftest import board, result, run


@pytest.fixture
def finished(here, small, tmp_path) -> Path:
    """The folder of a run of two epochs."""
    here(
        "train.py", *small, "trainer.max_epochs=2", "callbacks.progress.seconds=0", f"hydra.run.dir={tmp_path / 'run'}"
    )
    return tmp_path / "run"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_run_leaves_everything_behind(finished, here):
    ended = result(finished)
    assert (ended["epochs"], ended["steps"], ended["val_counts"]["pictures"]) == (2, 12, 1003)
    facts = json.loads((finished / "run.json").read_text())
    assert facts["seed"] == 0 and {"torch", "lightning"} <= set(facts["versions"]) and "git_commit" in facts
    assert {file.name for file in (finished / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)["classes"] == list("abcde")
    assert "ETA" in (log := (finished / "train.log").read_text()) and "epoch 2  validation: top-1 error" in log

    events = board(finished)
    scalars = set(events.Tags()["scalars"])
    errors = {"train/loss", "train/top1_error", "val/top1_error", "val/top5_error", "val/loss", "hp/top1_error"}
    assert errors | {"speed/images_per_second", "speed/data_wait", "lr-SGD/weights"} <= scalars
    assert events.Scalars("val/top1_error")[-1].value == pytest.approx(ended["final"]["val/top1_error"])
    assert {"conv1/kernels", "validation/predictions"} <= set(events.Tags()["images"])

    here("evaluate.py", f"run={finished}", "checkpoint=last")
    evaluated = json.loads((finished / "checkpoints" / "result.json").read_text())
    assert evaluated["centre crop"]["top1_error"] == pytest.approx(ended["final"]["val/top1_error"])
    assert evaluated["ten views"]["top5_error"] == 0  # of five classes


def test_a_resumed_run_is_the_unbroken_run(finished, here, small, tmp_path):
    here("train.py", *small, "trainer.max_epochs=4", f"hydra.run.dir={tmp_path / 'whole'}")
    moved = finished.rename(tmp_path / "moved")
    here("train.py", f"resume={moved}", "trainer.max_epochs=4")
    assert not finished.exists() and result(moved) == result(tmp_path / "whole")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(moved)[name]), name


def test_a_checkpoint_of_another_network(finished):
    done = run("train.py", f"resume={finished}", "model.width=0.25")
    assert done.returncode == 1 and "another network: conv1.weight is (12," in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_diverging_ends_with_the_remedy(here, small, tmp_path, capfd):
    with pytest.raises(SystemExit, match="1"):
        here("train.py", *small, "optimizer.lr=1e30", "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}")
    assert "training has diverged; lower optimizer.lr" in capfd.readouterr().err


@pytest.fixture(scope="session")
def by_devices(small, tmp_path_factory) -> dict[int, Path]:
    """Folders of the same twelve steps, dropout and all, by one, two and three processes."""
    folders = {}
    for devices in (1, 2, 3):
        folder = folders[devices] = tmp_path_factory.mktemp("devices") / str(devices)
        options = ["data.batch_size=12", "trainer.max_epochs=3", f"trainer.devices={devices}"]
        done = run("train.py", *small, *options, f"hydra.run.dir={folder}", "trainer.accelerator=cpu")
        assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize("devices", [2, 3])
def test_more_processes_train_the_same(by_devices, devices):
    alone, together = ([event.value for event in board(by_devices[n]).Scalars("train/loss")] for n in (1, devices))
    assert len(alone) == 12
    assert together == pytest.approx(alone, rel=1e-5)
    assert result(by_devices[devices])["val_counts"] == result(by_devices[1])["val_counts"]
    assert result(by_devices[1])["val_counts"]["pictures"] == 1003


def test_processes_share_one_folder(by_devices):
    assert {file.name for file in by_devices[2].parent.iterdir()} == {"2"}
    assert len(list((by_devices[2] / "tensorboard").glob("events*"))) == 2  # the scalars, and the HPARAMS tab
