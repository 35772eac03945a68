"""Epochs over stores of 10,240 to 1,024,000 images; their shards are all the same file, so that they fit a memory."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from alexnet.benchmarks.loader import ours
from alexnet.benchmarks.run import Candidate
from alexnet.data.store.reader import SHARD, Store
from alexnet.data.store.writer import Plan, PreparedImage, write_store

SIZE = 256
EPOCHS = {10_240: 10, 102_400: 1, 1_024_000: 1}  # by images


def list_candidates(cfg: DictConfig) -> list[Candidate]:
    stores = {
        count: repeated(Path(f"outputs/benchmark/repeated{count}"), count) for count in EPOCHS
    }
    return [
        Candidate(f"{n:,} images", partial(ours, store, 1, EPOCHS[n]))
        for n, store in stores.items()
    ]


def repeated(folder: Path, count: int) -> Store:
    """A store whose shards are all the same file."""
    shutil.rmtree(folder, ignore_errors=True)
    write_store(
        folder,
        Plan(SIZE, list("0123456789"), {"train": SHARD, "val": 1}, _noise, {"benchmark": "noise"}),
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    split = manifest["splits"]["train"]
    split |= {"count": count, "shards": split["shards"][:1] * (count // SHARD)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    np.save(folder / "train-labels.npy", np.zeros(count, np.int64))
    return Store(folder)


def _noise(split: str, rows: range) -> Iterator[PreparedImage]:
    for i in rows:
        pixels = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        yield PreparedImage(pixels.tobytes(), pixels, 0, str(i))
