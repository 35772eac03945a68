"""Epochs over stores of 10,240 to 1,024,000 images.

All shards of such a store are the same file, so that even the largest fits in memory.
"""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from alexnet.benchmarks.candidate import FOLDER, Candidate
from alexnet.benchmarks.loader import BATCH_SIZE, read_store
from alexnet.data.store import Store, open_store
from alexnet.data.store.format import IMAGES_PER_SHARD
from alexnet.data.store.writer import Plan, PreparedImage, write_store

SIZE = 256
# By the number of images, so that a round lasts long enough to be measured.
EPOCHS_PER_ROUND = {10_240: 10, 102_400: 1, 1_024_000: 1}


def list_candidates(config: DictConfig) -> list[Candidate]:
    candidates = []
    for images, epochs in EPOCHS_PER_ROUND.items():
        store = write_repeated_store(FOLDER / f"repeated{images}", images)
        work = partial(read_store, store, BATCH_SIZE, threads=1, epochs=epochs)
        candidates.append(Candidate(f"{images:,} images", work))
    return candidates


def write_repeated_store(folder: Path, images: int) -> Store:
    """Writes a store of one shard, and then says in its manifest that there are more of it."""
    shutil.rmtree(folder, ignore_errors=True)
    counts = {"train": IMAGES_PER_SHARD, "val": 1}
    plan = Plan(SIZE, list("0123456789"), counts, draw_noise, {"benchmark": "noise"})
    write_store(folder, plan)
    # The same shard again and again, with as many labels.
    manifest_file = folder / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    train = manifest["splits"]["train"]
    train["count"] = images
    train["shards"] = train["shards"][:1] * (images // IMAGES_PER_SHARD)
    manifest_file.write_text(json.dumps(manifest))
    np.save(folder / "train-labels.npy", np.zeros(images, np.int64))
    return open_store(folder)


def draw_noise(split: str, rows: range) -> Iterator[PreparedImage]:
    for row in rows:
        pixels = np.random.default_rng(row).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        yield PreparedImage(pixels.tobytes(), pixels, 0, str(row))
