"""Bad input ends with one clear line that names the option and exit code 1."""

import subprocess

import numpy as np
import pytest
from conftest import run, store_of

OPTIONS = {
    "modle=alexnet": "Could not override 'modle'",
    "model=alexnett": "Could not find 'model/alexnett'",
    "optimizer.lrr=1": "Could not override 'optimizer.lrr'",
    "optimizer.lr=fast": "optimizer.lr=fast must be a number",
    "optimizer.lr=fast trainer.devices=two": "such as 0.007; trainer.devices=two must be a whole number",
    "model.dropout=1.5": "model.dropout=1.5 must lie in",
    "data=store": "data.folder is missing",
    "data=store data.folder=nowhere": "data.folder=nowhere holds no prepared store",
    "data.batch_size=10 trainer.devices=3": "data.batch_size=10 (of all devices together) does not divide by 3",
    "trainer.max_epochs=-1 trainer.max_steps=8": "trainer.max_epochs=-1 must be at least 1",
    "trainer.devices=1000": "trainer.devices=1000, but this machine has",
    "fused=true": "fused=true needs a GPU",
    "trainer.accelerator=cuda": "this machine has no GPU",
    "trainer.accelerator=mps": "choose auto, cpu or gpu",
    "data.threads=two": "data.threads=two must be null or a whole number",
    "resume=tests": "tests is no run folder",
    "model.num_classes=3": "the data has 5 classes",
}


def line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    (said,) = done.stderr.splitlines()
    return said


@pytest.mark.parametrize("options", OPTIONS)
def test_options(options, small):
    data = [] if "data=" in options else [option for option in small if option.startswith("data")]
    assert OPTIONS[options] in line(run("train.py", *data, *options.split()))


def test_an_empty_class_folder(tmp_path):
    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / "images" / place).mkdir(parents=True)
    said = line(run("prepare.py", f"source={tmp_path / 'images'}", f"folder={tmp_path / 'store'}"))
    assert "class folder" in said and "cat has no image" in said and "dog has no image" in said
    assert not (tmp_path / "store").exists()


def test_labels_outside_the_classes(small_store, tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    for file in small_store.folder.iterdir():
        (folder / file.name).hardlink_to(file)
    (folder / "val-labels.npy").unlink()
    np.save(folder / "val-labels.npy", np.full(1003, 5))
    assert "val-labels.npy has labels outside 0..4" in line(
        run("train.py", "data=store", f"data.folder={folder}")
    )


def test_one_class(tmp_path):
    images, labels = np.zeros((8, 72, 72, 3), np.uint8), np.zeros(8, np.int64)
    store = store_of(tmp_path / "store", ["all"], train=(images, labels), val=(images, labels))
    assert "has one class" in line(run("train.py", "data=store", f"data.folder={store.folder}"))
