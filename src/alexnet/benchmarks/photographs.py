"""Photograph-like JPEG files to measure on, each a mosaic of a store's images."""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from alexnet.benchmarks.candidate import FOLDER
from alexnet.data.store import Store, open_store

CLASSES = 4
FULL_SIZE = (500, 375)  # width and height
JPEG_QUALITY = 95


def prepare_photographs(config: DictConfig) -> Path:
    """The folder of the photographs that a benchmark's configuration asks for."""
    folder = FOLDER / f"photographs{config.images}"
    return write_photographs(open_store(config.folder), config.images, folder)


def write_photographs(store: Store, count: int, folder: Path) -> Path:
    """Writes `count` files <folder>/train/<class>/<number>.jpg, and a quarter as many in val.

    Existing files are kept.
    """
    for split, images in (("train", count), ("val", count // 4)):
        for number in range(images):
            file = folder / split / f"class{number % CLASSES}" / f"{number:06d}.jpg"
            if not file.exists():
                # Keyed by its number, so that an interrupted benchmark can be completed.
                save_resized(Image.fromarray(draw_mosaic(store, seed=number)), FULL_SIZE, file)
    return folder


def draw_mosaic(store: Store, seed: int) -> np.ndarray:
    """Four random training images in a square."""
    split = store.splits["train"]
    chosen = np.random.default_rng(seed).integers(0, len(split), 4)
    tiles = split.images(chosen)
    top = np.concatenate(tiles[:2], axis=1)
    bottom = np.concatenate(tiles[2:], axis=1)
    return np.concatenate([top, bottom], axis=0)


def write_squares(photographs: Path, folder: Path) -> Path:
    """Writes the photographs at 256 × 256 to another folder; keeps existing files."""
    for photograph in sorted(photographs.glob("*/*/*.jpg")):
        file = folder / photograph.relative_to(photographs)
        if not file.exists():
            save_resized(Image.open(photograph), (256, 256), file)
    return folder


def save_resized(image: Image.Image, size: tuple[int, int], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.resize(size, Image.Resampling.BICUBIC).save(file, quality=JPEG_QUALITY)
