"""Full-size files to 256 × 256 pixels: prepare.py against Pillow's decoder and resize."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from alexnet.benchmarks.candidate import Candidate
from alexnet.benchmarks.photographs import prepare_photographs
from alexnet.data.prepare import prepare_store

SIZE = 256


def list_candidates(config: DictConfig) -> list[Candidate]:
    folder = prepare_photographs(config)
    return [
        Candidate("prepare.py, one core", partial(prepare_with_ours, folder, 1)),
        Candidate("prepare.py, two cores", partial(prepare_with_ours, folder, 2)),
        Candidate("Pillow", partial(resize_with_pillow, folder)),
    ]


def prepare_with_ours(folder: Path, cores: int) -> int:
    """All of the work: decoding, statistics, hashes and writing. Returns the number of images."""
    with limit_cores(cores), tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        store = prepare_store(str(folder), f"{temporary}/store", SIZE)
        return sum(len(split) for split in store.splits.values())


@contextmanager
def limit_cores(count: int) -> Iterator[None]:
    """Lets this process use some cores only, and torch as many threads.

    More torch threads than cores would wait for each other, which does not happen on a machine that
    has no more cores.
    """
    allowed = os.sched_getaffinity(0)
    threads = torch.get_num_threads()
    os.sched_setaffinity(0, set(sorted(allowed)[:count]))
    torch.set_num_threads(min(count, threads))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(threads)


def resize_with_pillow(folder: Path) -> int:
    """Decodes, resizes and crops, and writes nothing. Returns the number of images."""
    files = sorted(folder.glob("*/*/*.jpg"))
    for file in files:
        image = Image.open(file).convert("RGB")
        # The shorter side becomes SIZE, as in prepare.py.
        scale = SIZE / min(image.size)
        width = round(image.width * scale)
        height = round(image.height * scale)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left = (width - SIZE) // 2
        top = (height - SIZE) // 2
        np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))
    return len(files)
