import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: the test processes share the cores, threads would wait
# By default the tests see no GPU; ACCELERATOR=gpu runs them on GPUs, the forms as far as there are enough.
os.environ.update({} if os.environ.get("ACCELERATOR") == "gpu" else {"CUDA_VISIBLE_DEVICES": ""})
os.environ["NVIDIA_TF32_OVERRIDE"] = (
    "0"  # float32 is float32 on a GPU too, so that runs can be compared
)

import numpy as np
import pytest
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alexnet.data.store.reader import Store
from alexnet.data.store.writer import Plan, PreparedImage, write_store

ROOT = Path(__file__).parent.parent
ACCELERATOR = os.environ.get("ACCELERATOR", "cpu")
ON = f"trainer.accelerator={ACCELERATOR}"


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a door in a process of its own, as a user would: `run("train.py", "model=alexnet")`."""
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def here(monkeypatch):
    """Runs a door in this process, which has imported torch already: `here("train.py", "model=alexnet")`."""

    def call(door: str, *options: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(ROOT / door), *options])
        monkeypatch.chdir(ROOT)
        runpy.run_path(str(ROOT / door), run_name="__main__")

    return call


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def need(devices: int) -> None:
    import torch

    if ACCELERATOR == "gpu" and torch.cuda.device_count() < devices:
        pytest.skip(f"needs {devices} GPUs")


def run_facts(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def losses(folder: Path) -> list[float]:
    return [event.value for event in board(folder).Scalars("train/loss")]


def board(folder: Path) -> EventAccumulator:
    """A run's TensorBoard file, read back."""
    return EventAccumulator(
        str(folder / "tensorboard"), {"images": 0, "scalars": 0, "tensors": 0}
    ).Reload()


def store_of(folder: Path, classes: list[str], **splits: tuple[np.ndarray, np.ndarray]) -> Store:
    """A store of (images, labels) for `train` and `val`."""

    def read(split: str, rows: range) -> Iterator[PreparedImage]:
        images, labels = splits[split]
        for i in rows:
            yield PreparedImage(images[i].tobytes(), images[i], int(labels[i]), str(i))

    counts = {name: len(labels) for name, (_, labels) in splits.items()}
    return write_store(
        folder, Plan(splits["train"][0].shape[1], classes, counts, read, {"test": str(folder)})
    )


@pytest.fixture(scope="session")
def small_store(tmp_path_factory) -> Store:
    """48 images to train on and 1,003 to validate with, 72 × 72, five classes, each of a brightness of its own."""
    rng = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 5, count)
        noise = rng.integers(0, 100, (count, 72, 72, 3))
        return (noise + 30 * labels[:, None, None, None]).astype(np.uint8), labels

    return store_of(
        tmp_path_factory.mktemp("data") / "store", list("abcde"), train=split(48), val=split(1003)
    )


@pytest.fixture(scope="session")
def small(small_store) -> list[str]:
    """Options of AlexNet at an eighth of its width on the small store: six steps an epoch, dropout as in the paper."""
    return [
        *(
            "model=alexnet",
            "model.width=0.125",
            "model.init=kaiming",
            "augment.crop=67",
            "augment.scale=0.016",
        ),
        "trainer.deterministic=true",
        *(
            "data=store",
            f"data.folder={small_store.folder}",
            "data.batch_size=8",
            "trainer.log_every_n_steps=1",
        ),
    ]


FORMS = {
    "one": ["trainer.devices=1"],
    "two": ["trainer.devices=2"],
    "three": ["trainer.devices=3"],
    "fsdp": ["trainer.devices=2", "parallel=fsdp"],
    "towers": ["trainer.devices=2", "parallel=towers"],
    "hybrid": ["trainer.devices=2", "parallel=hybrid"],
    "two pairs of towers": ["trainer.devices=4", "parallel=towers"],
}


@pytest.fixture(scope="session")
def by_form(small, tmp_path_factory) -> Callable[[str], Path]:
    """Folders of the same eight steps, dropout and all, in each form; the test processes share them."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def folder(form: str) -> Path:
        place = shared / "forms" / form
        place.parent.mkdir(exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not (place / "result.json").exists():
                need(int(FORMS[form][0].split("=")[1]))
                options = ["data.batch_size=12", "trainer.max_epochs=2", ON]
                done = run("train.py", *small, *options, *FORMS[form], f"hydra.run.dir='{place}'")
                assert done.returncode == 0, done.stderr
        return place

    return folder
