"""Full-size files to 256 × 256 pixels: prepare.py against Pillow's decoder and resize."""

import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from alexnet.benchmarks import Contestant
from alexnet.benchmarks.pictures import made
from alexnet.data.prepare import prepare_store


def contestants(cfg: DictConfig) -> list[Contestant]:
    folder = made(cfg)
    return [
        Contestant("prepare.py, one core", partial(_ours, folder, 1)),
        Contestant("prepare.py, two cores", partial(_ours, folder, 2)),
        Contestant("Pillow", partial(_pillow, folder)),
    ]


def _ours(folder: Path, cores: int) -> int:
    """The whole work: decoding, statistics, hashes and writing. On one core torch has one thread, as in a process that
    has no other core; two would wait for each other."""
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, set(sorted(allowed)[:cores]))
    torch.set_num_threads(min(cores, threads))
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            return sum(len(s) for s in prepare_store(str(folder), f"{place}/store", 256).splits.values())
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(threads)


def _pillow(folder: Path) -> int:
    files = sorted(folder.glob("*/*/*.jpg"))
    for file in files:
        picture = Image.open(file).convert("RGB")
        scale = 256 / min(picture.size)
        picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
        left, top = (picture.width - 256) // 2, (picture.height - 256) // 2
        np.asarray(picture.crop((left, top, left + 256, top + 256)))
    return len(files)
