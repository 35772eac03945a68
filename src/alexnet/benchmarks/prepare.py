"""Full-size files to 256 × 256 pixels: prepare.py against Pillow's decoder and resize."""

import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from alexnet.benchmarks.photographs import made
from alexnet.benchmarks.run import Candidate
from alexnet.data.prepare import prepare_store


def list_candidates(cfg: DictConfig) -> list[Candidate]:
    folder = made(cfg)
    return [
        Candidate("prepare.py, one core", partial(_ours, folder, 1)),
        Candidate("prepare.py, two cores", partial(_ours, folder, 2)),
        Candidate("Pillow", partial(_pillow, folder)),
    ]


def _ours(folder: Path, cores: int) -> int:
    """The whole work: decoding, statistics, hashes and writing. On one core torch has one thread, as in a process that
    has no other core; two would wait for each other."""
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, set(sorted(allowed)[:cores]))
    torch.set_num_threads(min(cores, threads))
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            return sum(
                len(s) for s in prepare_store(str(folder), f"{place}/store", 256).splits.values()
            )
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(threads)


def _pillow(folder: Path) -> int:
    files = sorted(folder.glob("*/*/*.jpg"))
    for file in files:
        image = Image.open(file).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
        left, top = (image.width - 256) // 2, (image.height - 256) // 2
        np.asarray(image.crop((left, top, left + 256, top + 256)))
    return len(files)
