"""Bad input ends with one line that names the option and the fix, and exit code 1."""

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_store, run_command

# Options of train.py on a fresh checkout, and what the line says.
OPTIONS = {
    "modle=alexnet": "Could not override 'modle', there is no such option: did you mean model?",
    "model=alexnett": "Could not find 'model/alexnett'",
    "optimizer.lrr=1": "there is no such option: did you mean lr?",
    "optimizer.apart=conv1": "optimizer has bias_lr_factor, decay_biases, lr",
    "optimizer.lr=fast": "optimizer.lr=fast must be a number",
    "optimizer.lr=fast trainer.devices=two": "trainer.devices=two must be a whole number",
    "optimizer.lr=-1": "optimizer.lr=-1 must be greater than or equal to 0",
    "optimizer.lr=nan": "optimizer.lr=nan must be a finite number",
    "optimizer.momentum=-1": "optimizer.momentum=-1 must be greater than or equal to 0",
    "optimizer.separate_layers=conv1": "optimizer.separate_layers=conv1 must be a list",
    "optimizer.separate_layers=[conv9]": "optimizer.separate_layers",
    "schedule=linear schedule.warmup=2": "schedule.warmup=2 must be less than 1",
    "schedule=net_145": "optimizer.separate_layers=[conv1]",
    "schedule.epochs=6": "schedule.epochs=6 must be a list",
    "trainer.log_every_n_steps=0": "trainer.log_every_n_steps=0 must be greater than 0",
    "trainer.limit_train_batches=0": "trainer.limit_train_batches=0 must be greater than 0",
    "trainer.limit_train_batches=0.01": "trainer.limit_train_batches=0.01 keeps 1 of 125 batches",
    "trainer.max_epochs=-1 trainer.max_steps=8": "trainer.max_epochs=-1 must be greater than 0",
    "trainer.devices=0": "trainer.devices=0 must be greater than 0",
    "trainer.devices=1000": "trainer.devices=1000, but this machine has room for",
    "trainer.accelerator=cuda": "this machine has no GPU",
    "trainer.accelerator=mps": "trainer.accelerator=mps must be 'auto', 'cpu', 'gpu' or 'cuda'",
    "augment.color_noise_off=[1,2]": "augment.color_noise_off=[1, 2] must be a list",
    "augment.fade=0.5": "augment.fade",
    "model.conv1=[11,4]": "model.conv1=[11, 4]",
    "model.channels=[1,2]": "model.channels",
    "model.stage1=relu": "model.stage1=relu must be a list",
    "model.stage1=[reluu]": "model.stage1",
    "model.dropout=2": "model.dropout=2 must be less than 1",
    "model.crop=10": "model.crop=10 is too small",
    "model=null": "model=null leaves the run without its model",
    "logger=null": "logger=none trains without one",
    "~logger": "logger=none trains without one",
    "callbacks.figures=null": "to leave the callback out write '~callbacks.figures'",
    "hydra/job_logging=disabled": "hydra/job_logging=disabled leaves no log",
    "data=store": "data.folder is missing",
    "data=store data.folder=nowhere": "data.folder=nowhere holds no prepared store",
    "data.batch_size=10 trainer.devices=3": "data.batch_size=10 is not divisible by 3 devices",
    "data.batch_size=5000": "data.batch_size=5000",
    "data.threads=0": "data.threads=0 must be greater than 0 or null",
    "data.threads=two": "data.threads=two must be a whole number or null",
    "parallel=fsdp parallel.timeout=0": "parallel.timeout=0 must be greater than 0",
    "fused=true": "fused=true needs a GPU",
    "resume=tests": "tests is not a run folder",
    "start.run=tests": "start.run",
    "seed=-1": "seed=-1 must be greater than or equal to 0",
}


def read_line(finished: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed."""
    assert finished.returncode == 1, finished.stderr
    (line,) = finished.stderr.splitlines()
    return line


@pytest.fixture
def fail(run_in_process, capfd):
    """Runs a command that fails, and returns its one line."""

    def call(script: str, *options: str) -> str:
        with pytest.raises(SystemExit) as caught:
            run_in_process(script, *options)
        assert caught.value.code == 1
        assert "HYDRA_FULL_ERROR" not in os.environ  # which is set while Hydra runs
        (line,) = capfd.readouterr().err.splitlines()
        return line

    return call


@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_train(options, fail, tmp_path):
    images = tmp_path / "shapes"
    more = [] if "data=store" in options else [f"data.folder={images}"]
    line = fail("train.py", *more, f"hydra.run.dir={tmp_path / 'run'}", *options.split())
    assert OPTIONS[options] in line
    assert not images.exists(), "nothing may be rendered before the options are checked"


def test_problems_of_one_input_come_together(fail, tmp_path):
    options = [
        "optimizer.lr=-1",
        "model.dropout=2",
        "data.batch_size=0",
        "callbacks.last.minutes=-1",
    ]
    line = fail("train.py", *options, f"hydra.run.dir={tmp_path / 'run'}")
    assert "optimizer.lr=-1" in line
    assert "model.dropout=2" in line


@pytest.mark.parametrize("options", ["model.dropout=2", "data.threads=0", "optimizer.lrr=1"])
def test_a_new_process_answers_at_once(options, tmp_path):
    """In a process that has imported nothing; the time includes the import of torch."""
    started = time.monotonic()
    finished = run_command(
        "train.py",
        options,
        f"data.folder={tmp_path / 'shapes'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert options in read_line(finished) or "lrr" in options
    assert time.monotonic() - started < 30  # 6 s on an idle machine


@pytest.mark.parametrize("name", ["a" * 300, "file/run"])
def test_a_run_folder_that_can_not_be_made(name, fail, tmp_path):
    (tmp_path / "file").write_text("")
    line = fail("train.py", f"hydra.run.dir={tmp_path / name}")
    assert "choose another folder" in line


def test_a_bug_shows_its_traceback(run_in_process, monkeypatch, tmp_path, capfd):
    def fail(config: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("alexnet.training.train.train", fail)
    with pytest.raises(SystemExit):
        run_in_process("train.py", f"hydra.run.dir={tmp_path}")
    error = capfd.readouterr().err
    assert "Traceback" in error
    assert "RuntimeError: planted" in error


def test_fewer_outputs_than_classes(fail, small_options, tmp_path):
    line = fail("train.py", *small_options, "model.num_classes=3", f"hydra.run.dir={tmp_path}")
    assert "model.num_classes=3, but the data has 5 classes" in line


def test_a_crop_larger_than_the_images(fail, small_options, tmp_path):
    line = fail("train.py", *small_options, "augment.crop=80", f"hydra.run.dir={tmp_path}")
    assert "augment.crop=80 is larger than the store's images of 72 pixels" in line


def test_a_run_folder_of_an_earlier_version(fail, tmp_path):
    (tmp_path / "config.yaml").write_text("model: {_target_: alexnet.nets.alexnet.AlexNet}\n")
    (tmp_path / "run.json").write_text('{"git_commit": "7085fa6"}')
    line = fail("evaluate.py", f"run={tmp_path}")
    assert "was written by another version" in line
    assert "git commit 7085fa6" in line


def test_an_empty_class_folder(tmp_path):
    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / "images" / place).mkdir(parents=True)
    line = read_line(
        run_command("prepare.py", f"source={tmp_path / 'images'}", f"folder={tmp_path / 'store'}")
    )
    assert "cat has no image" in line
    assert "dog has no image" in line
    assert not (tmp_path / "store").exists()


def link_store(source: Path, folder: Path) -> None:
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).hardlink_to(file)


def test_labels_outside_the_classes(fail, small_store, tmp_path):
    folder = tmp_path / "store"
    link_store(small_store.folder, folder)
    (folder / "val-labels.npy").unlink()
    np.save(folder / "val-labels.npy", np.full(1003, 5))
    line = fail("train.py", "data=store", f"data.folder={folder}", f"hydra.run.dir={tmp_path}/run")
    assert "val-labels.npy has labels outside 0..4" in line


def test_one_class(fail, tmp_path):
    split = (np.zeros((8, 72, 72, 3), np.uint8), np.zeros(8, np.int64))
    store = make_store(tmp_path / "store", ["all"], train=split, val=split)
    options = ["data=store", f"data.folder={store.folder}", "augment.crop=67", "data.batch_size=8"]
    line = fail("train.py", *options, "model=alexnet", f"hydra.run.dir={tmp_path}/run")
    assert "has one class" in line
