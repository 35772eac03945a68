import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet.data.store import Store, StoreWriter

ROOT = Path(__file__).parent.parent


def run(*command: str, cwd: Path = ROOT, threads: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs a door, `run("train.py", "model=alexnet")`, as a user would."""
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def small_store(tmp_path_factory) -> Store:
    """48 pictures to train on and 1,003 to validate with, 40 × 40, five classes, each of a brightness of its own."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "store"
    with StoreWriter(folder, 40, list("abcde"), {}) as writer:
        for split, count in (("train", 48), ("val", 1003)):
            labels = rng.integers(0, 5, count)
            noise = rng.integers(0, 100, (count, 40, 40, 3))
            writer.add(split, (noise + 30 * labels[:, None, None, None]).astype(np.uint8), labels)
    return Store(folder)
