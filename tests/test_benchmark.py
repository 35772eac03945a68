"""The benchmarks run; what they measure is nobody's business here."""

import json

import numpy as np
import pytest
from conftest import store_of


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 256, (12, 224, 224, 3), np.uint8)
    split = (images, np.arange(12) % 2)
    return store_of(tmp_path_factory.mktemp("data") / "store", ["a", "b"], train=split, val=split)


@pytest.mark.parametrize("what", ["evaluate", "end_to_end"])
def test_benchmark(what, here, store, tmp_path, capfd):
    tiny = [
        "net=alexnet_small",
        "batch_size=4",
        "steps=2",
        "rounds=2",
        "images=8",
        f"folder={store.folder}",
    ]
    here("benchmark.py", f"what={what}", *tiny, f"hydra.run.dir={tmp_path}")
    facts = json.loads((tmp_path / "result.json").read_text())
    rates = facts["images per CPU-second and second"]
    assert {"a large matmul", "a large copy"} < set(rates)
    assert all(len(rows) == 2 and min(map(min, rows)) > 0 for rows in rates.values())
    assert "ceilings:" in capfd.readouterr().out
