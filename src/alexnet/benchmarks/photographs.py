"""Photograph-like files to measure on, made of a store's images."""

from pathlib import Path

import numpy as np
from PIL import Image

from alexnet.data.store.reader import Store, open_store

CLASSES = 4


def photographs(store: Store, count: int, folder: Path) -> Path:
    """`count` JPEGs of 500 × 375, quality 95, in `folder`/train/<class>/ and a quarter as many in val/; each shows four
    of the store's images side by side, enlarged. Made unless they are there."""
    for split, number in (("train", count), ("val", count // 4)):
        for i in range(number):
            file = folder / split / f"class{i % CLASSES}" / f"{i:06d}.jpg"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(_mosaic(store, i)).resize(
                    (500, 375), Image.Resampling.BICUBIC
                ).save(file, quality=95)
    return folder


def _mosaic(store: Store, seed: int) -> np.ndarray:
    split = store.splits["train"]
    tiles = np.empty((4, store.size, store.size, 3), np.uint8)
    split.read(np.random.default_rng(seed).integers(0, len(split), 4), tiles)
    return np.block([[[tiles[0]], [tiles[1]]], [[tiles[2]], [tiles[3]]]])


def squares(source: Path, folder: Path) -> Path:
    """The photographs at 256 × 256, quality 95."""
    for file in sorted(source.glob("*/*/*.jpg")):
        target = folder / file.relative_to(source)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).resize((256, 256), Image.Resampling.BICUBIC).save(target, quality=95)
    return folder


def made(cfg) -> Path:
    """The photographs that a benchmark's configuration asks for."""
    return photographs(
        open_store(cfg.folder), cfg.images, Path("outputs/benchmark") / f"photographs{cfg.images}"
    )
