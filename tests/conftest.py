import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alexnet.data.store import Store, StoreWriter

ROOT = Path(__file__).parent.parent


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a door in a process of its own, as a user would: `run("train.py", "model=alexnet")`."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


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


def board(folder: Path) -> EventAccumulator:
    """A run's TensorBoard file, read back."""
    return EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0, "tensors": 0}).Reload()


@pytest.fixture(scope="session")
def small_store(tmp_path_factory) -> Store:
    """48 pictures to train on and 1,003 to validate with, 72 × 72, five classes, each of a brightness of its own."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "store"
    with StoreWriter(folder, 72, list("abcde"), {}) as writer:
        for split, count in (("train", 48), ("val", 1003)):
            labels = rng.integers(0, 5, count)
            noise = rng.integers(0, 100, (count, 72, 72, 3))
            writer.add(split, (noise + 30 * labels[:, None, None, None]).astype(np.uint8), labels)
    return Store(folder)


@pytest.fixture(scope="session")
def small(small_store) -> list[str]:
    """Options of AlexNet at an eighth of its width on the small store: six steps an epoch, dropout as in the paper."""
    return [
        *("model=alexnet", "model.width=0.125", "model.init=kaiming", "augment.crop=67", "augment.scale=0.016"),
        *("data=store", f"data.folder={small_store.folder}", "data.batch_size=8", "trainer.log_every_n_steps=1"),
    ]
