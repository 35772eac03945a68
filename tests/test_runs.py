"""Whole runs by the doors: what they leave behind, resuming, evaluating, and two and three processes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import FORMS, ON, board, losses, need, result, run

from alexnet.nets.alexnet import AlexNet
from alexnet.nets.cifar import CifarConv4
from alexnet.parallel.strategies import Hybrid, Towers


@pytest.fixture
def finished(here, small, tmp_path) -> Path:
    """The folder of a run of two epochs."""
    here(
        "train.py",
        *small,
        "trainer.max_epochs=2",
        "callbacks.progress.seconds=0",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    return tmp_path / "run"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_run_leaves_everything_behind(finished, here):
    ended = result(finished)
    assert (ended["epochs"], ended["steps"], ended["val_counts"]["images"]) == (2, 12, 1003)
    facts = json.loads((finished / "run.json").read_text())
    assert (
        facts["seed"] == 0
        and {"torch", "lightning"} <= set(facts["versions"])
        and "git_commit" in facts
    )
    assert {file.stem for file in (finished / "checkpoints").iterdir()} == {
        "best",
        "last",
        "previous",
    }
    assert torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)["classes"] == list(
        "abcde"
    )
    assert (
        "ETA" in (log := (finished / "train.log").read_text())
        and "epoch 2  validation: top-1 error" in log
    )

    events = board(finished)
    scalars = set(events.Tags()["scalars"])
    errors = {
        "train/loss",
        "train/top1_error",
        "val/top1_error",
        "val/top5_error",
        "val/loss",
        "hp/top1_error",
    }
    assert errors | {"speed/images_per_second", "speed/data_wait", "lr-SGD/weights"} <= scalars
    assert events.Scalars("val/top1_error")[-1].value == pytest.approx(
        ended["final"]["val/top1_error"]
    )
    assert {"conv1/kernels", "validation/predictions"} <= set(events.Tags()["images"])

    here("evaluate.py", f"run={finished}", "checkpoint=last")
    evaluated = json.loads((finished / "checkpoints" / "result.json").read_text())
    assert evaluated["center crop"]["top1_error"] == pytest.approx(ended["final"]["val/top1_error"])
    assert evaluated["ten views"]["top5_error"] == 0  # of five classes


def test_a_resumed_run_is_the_unbroken_run(finished, here, small, tmp_path):
    here("train.py", *small, "trainer.max_epochs=4", f"hydra.run.dir={tmp_path / 'whole'}")
    moved = finished.rename(tmp_path / "moved")
    here("train.py", f"resume={moved}", "trainer.max_epochs=4")
    assert not finished.exists() and result(moved) == result(tmp_path / "whole")
    assert (
        len(board(moved).Images("conv1/kernels"))
        == len(board(tmp_path / "whole").Images("conv1/kernels"))
        == 4
    )
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(moved)[name]), name


def test_a_checkpoint_of_another_network(finished):
    done = run("train.py", f"resume={finished}", "model.width=0.25")
    assert done.returncode == 1 and "another network: conv1.weight is (12," in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_rates_of_a_run_that_goes_on_can_not_be_changed(finished):
    """They lie in its checkpoint, so a new one would be without effect."""
    done = run(
        "train.py",
        f"resume={finished}",
        "optimizer.lr=1.0",
        "schedule.patience=4",
        "trainer.max_epochs=3",
    )
    assert done.returncode == 1 and "leave out optimizer.lr=1.0, or begin a new run" in done.stderr


@pytest.mark.parametrize("precision, steps, near", [("64-true", 8, 1e-5), ("bf16-true", 1, 0.01)])
def test_other_precisions(precision, steps, near, by_form, small, here, tmp_path):
    """Weights in bfloat16 go their own way, from the same beginning; the last loss is that which evaluate.py finds."""
    options = ["data.batch_size=12", "trainer.max_epochs=2", f"trainer.precision={precision}"]
    here("train.py", *small, *options, f"hydra.run.dir={tmp_path}")
    assert losses(tmp_path)[:steps] == pytest.approx(losses(by_form("one"))[:steps], rel=near)
    here("evaluate.py", f"run={tmp_path}", "checkpoint=last")
    evaluated = json.loads((tmp_path / "checkpoints" / "result.json").read_text())["center crop"][
        "loss"
    ]
    assert evaluated == pytest.approx(result(tmp_path)["final"]["val/loss"], rel=0.01)


def test_diverging_ends_with_the_remedy(here, small, tmp_path, capfd):
    with pytest.raises(SystemExit, match="1"):
        here(
            "train.py",
            *small,
            "optimizer.lr=1e30",
            "trainer.max_epochs=2",
            f"hydra.run.dir={tmp_path}",
        )
    assert "training has diverged; lower optimizer.lr" in capfd.readouterr().err


ACCUMULATING = ("two", "fsdp", "towers", "two pairs of towers")


@pytest.mark.parametrize("form", [form for form in FORMS if form != "one"])
def test_every_form_trains_the_same(by_form, form):
    alone, together = by_form("one"), by_form(form)
    assert len(losses(alone)) == 8
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    assert result(together)["val_counts"] == result(alone)["val_counts"]
    assert result(alone)["val_counts"]["images"] == 1003
    spread = weights(together)
    for name, value in weights(alone).items():
        torch.testing.assert_close(spread[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "form", ["one", "hybrid", *(pytest.param(f, marks=pytest.mark.long) for f in ACCUMULATING)]
)
def test_two_accumulated_halves_are_one_batch(form, by_form, small, tmp_path):
    halves = ["data.batch_size=6", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=2"]
    done = run("train.py", *small, *halves, *FORMS[form], ON, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert result(tmp_path)["steps"] == 8
    for name, value in weights(by_form("one")).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "form", ["hybrid", *(pytest.param(f, marks=pytest.mark.long) for f in ACCUMULATING)]
)
@pytest.mark.parametrize("algorithm", ["norm", pytest.param("value", marks=pytest.mark.long)])
def test_bfloat16_and_clipping_in_every_form(form, algorithm, by_form, small, tmp_path):
    """Losses stay near those of float32, which nothing clips at these limits."""
    options = [
        "data.batch_size=12",
        "trainer.max_epochs=2",
        "trainer.precision=bf16-mixed",
        ON,
    ]
    clip = ["trainer.gradient_clip_val=1000", f"trainer.gradient_clip_algorithm={algorithm}"]
    done = run("train.py", *small, *options, *clip, *FORMS[form], f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == pytest.approx(losses(by_form("one")), rel=0.05)


def test_processes_share_one_folder(by_form):
    assert {place.name for place in by_form("two").parent.iterdir() if place.is_dir()} <= set(FORMS)
    assert (
        len(list((by_form("two") / "tensorboard").glob("events*"))) == 2
    )  # the scalars, and the HPARAMS tab


def test_a_run_goes_on_in_another_form(finished, here, tmp_path):
    need(2)
    alone = shutil.copytree(finished, tmp_path / "alone")
    here("train.py", f"resume={alone}", "trainer.max_epochs=3")
    done = run(
        "train.py",
        f"resume={finished}",
        "trainer.max_epochs=3",
        "parallel=towers",
        "trainer.devices=2",
    )
    assert done.returncode == 0, done.stderr
    assert result(finished)["val_counts"] == result(alone)["val_counts"]
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(finished)[name], value, rtol=1e-4, atol=1e-6, msg=name)
    here(
        "train.py",
        f"resume={finished}",
        "trainer.max_epochs=4",
        "parallel=auto",
        "trainer.devices=1",
    )
    assert result(finished)["epochs"] == 4


@pytest.mark.parametrize(
    "form, net, devices, precision, said",
    [
        (
            Towers(2, 60),
            AlexNet(width=0.1),
            3,
            "32-true",
            "devices in groups of 2, but there are 3",
        ),
        (Towers(2, 60), AlexNet(width=0.1, towers=1), 2, "32-true", "needs a network of 2 towers"),
        (
            Towers(2, 60),
            AlexNet(width=0.1, communicate=False),
            2,
            "32-true",
            "towers that communicate",
        ),
        (Towers(2, 60), AlexNet(width=0.1), 2, "16-mixed", "take bf16-mixed"),
        (
            Hybrid(3, 60),
            AlexNet(width=0.1),
            3,
            "32-true",
            "fc6 has 410 units, which do not divide by 3",
        ),
        (Hybrid(2, 60), CifarConv4(), 2, "32-true", "needs an AlexNet"),
    ],
)
def test_what_can_not_be_spread_is_refused(form, net, devices, precision, said):
    with pytest.raises(ValueError, match=said):
        form.check(net, devices, precision)


def test_a_sweep_goes_on_and_skips_what_is_done(small, tmp_path):
    need(2)
    options = [
        "-m",
        *small[:-2],
        "trainer.max_epochs=1",
        f"hydra.sweep.dir='{tmp_path / 'a=b,c'}'",
        "trainer.devices=2",
    ]
    done = run("train.py", *options, "data.batch_size=7,8")
    assert done.returncode == 1 and "does not divide by 2 devices" in done.stderr
    bad, good = ((tmp_path / "a=b,c" / name) for name in ("0", "1"))
    assert not (bad / "result.json").exists() and result(good)["steps"] == 6
    assert "failed" in done.stdout
    before = (good / "result.json").stat().st_mtime_ns
    again = run("train.py", *options, "data.batch_size=6,8")
    assert again.returncode == 1 and "holds another job" in again.stderr + again.stdout
    (bad / ".hydra" / "overrides.yaml").unlink()
    again = run("train.py", *options, "data.batch_size=6,8")
    assert again.returncode == 0, again.stderr
    assert (good / "result.json").stat().st_mtime_ns == before and result(bad)["steps"] == 8
