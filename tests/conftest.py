"""What the tests share: ways to run commands, a small store, runs by parallel strategy."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: the test processes share the cores, threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The tests see no GPU by default; ACCELERATOR=gpu runs them on GPUs, as far as there are enough.
ACCELERATOR = os.environ.get("ACCELERATOR", "cpu")
if ACCELERATOR != "gpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# float32 is float32 on a GPU too, so that runs can be compared.
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

import numpy as np
import pytest
import torch
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alexnet.data.store import Store
from alexnet.data.store.writer import Plan, PreparedImage, write_store

ROOT = Path(__file__).parent.parent
ON_ACCELERATOR = f"trainer.accelerator={ACCELERATOR}"
TIMEOUT = 300  # seconds of one command
# The options of each parallel strategy that the tests compare.
STRATEGIES = {
    "one": ["trainer.devices=1"],
    "two": ["trainer.devices=2"],
    "three": ["trainer.devices=3"],
    "fsdp": ["trainer.devices=2", "parallel=fsdp"],
    "towers": ["trainer.devices=2", "parallel=towers"],
    "hybrid": ["trainer.devices=2", "parallel=hybrid"],
    "two pairs of towers": ["trainer.devices=4", "parallel=towers"],
}
RunCommand = Callable[..., None]


def run_command(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a script in a new process, as a user would: `run_command("train.py", "seed=1")`."""
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT
    )


@pytest.fixture(scope="session")
def run_in_process() -> RunCommand:
    """Runs a script in this process, which has imported torch: `run_in_process("train.py", …)`."""

    def call(script: str, *options: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(ROOT / script), *options])
            patch.chdir(ROOT)
            runpy.run_path(str(ROOT / script), run_name="__main__")

    return call


def require_devices(strategy: str) -> None:
    """Skips the test if there are fewer GPUs than a strategy needs."""
    devices = int(STRATEGIES[strategy][0].split("=")[1])
    if ACCELERATOR == "gpu" and torch.cuda.device_count() < devices:
        pytest.skip(f"needs {devices} GPUs")


def read_result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def read_run_facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def read_events(folder: Path) -> EventAccumulator:
    """A run's TensorBoard files."""
    sizes = {"images": 0, "scalars": 0, "tensors": 0}  # all of them
    return EventAccumulator(str(folder / "tensorboard"), sizes).Reload()


def read_losses(folder: Path) -> list[float]:
    return [event.value for event in read_events(folder).Scalars("train/loss")]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those of a run's last checkpoint."""
    file = folder / "checkpoints" / "last.ckpt"
    return torch.load(file, weights_only=True)["state_dict"]


def make_store(folder: Path, classes: list[str], **splits: tuple[np.ndarray, np.ndarray]) -> Store:
    """A store of (images, labels) for `train` and `val`."""

    def read(split: str, rows: range) -> Iterator[PreparedImage]:
        images, labels = splits[split]
        for row in rows:
            pixels = images[row]
            yield PreparedImage(pixels.tobytes(), pixels, int(labels[row]), str(row))

    counts = {name: len(labels) for name, (_, labels) in splits.items()}
    size = splits["train"][0].shape[1]
    return write_store(folder, Plan(size, classes, counts, read, {"test": str(folder)}))


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """48 training and 1,003 validation images, 72 × 72, five classes of different brightness."""
    rng = np.random.default_rng(0)

    def draw_split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 5, count)
        noise = rng.integers(0, 100, (count, 72, 72, 3))
        return (noise + 30 * labels[:, None, None, None]).astype(np.uint8), labels

    folder = tmp_path_factory.mktemp("data") / "store"
    return make_store(folder, list("abcde"), train=draw_split(48), val=draw_split(1003))


@pytest.fixture(scope="session")
def small_options(small_store: Store) -> list[str]:
    """AlexNet at an eighth of its width on the small store: six steps an epoch, with dropout."""
    return [
        "model=alexnet",
        "model.width=0.125",
        "model.init=kaiming",
        "augment.crop=67",
        "augment.scale=0.016",
        "trainer.deterministic=true",
        "data=store",
        f"data.folder={small_store.folder}",
        "data.batch_size=8",
        "trainer.log_every_n_steps=1",
    ]


@pytest.fixture(scope="session")
def run_by_strategy(
    small_options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Folders of the same eight steps by each strategy, shared by the test processes."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def train(strategy: str) -> Path:
        require_devices(strategy)
        folder = shared / "strategies" / strategy
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "result.json").exists():
                options = ["data.batch_size=12", "trainer.max_epochs=2", ON_ACCELERATOR]
                options += [*STRATEGIES[strategy], f"hydra.run.dir='{folder}'"]
                finished = run_command("train.py", *small_options, *options)
                assert finished.returncode == 0, finished.stderr
        return folder

    return train
