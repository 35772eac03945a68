"""The embedded image set needs shapes and textures to be learned, and is the same everywhere."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from alexnet.data.shapes import CLASSES, render


def test_an_image_depends_on_seed_split_and_number_alone() -> None:
    alone, label = render(3, "val", 17)
    assert label == 7
    assert alone.shape == (256, 256, 3)
    assert alone.dtype == np.uint8
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(partial(render, 3, "val"), range(15, 20)))
    image, same_label = together[2]
    np.testing.assert_array_equal(image, alone)
    assert same_label == label


@pytest.mark.parametrize(
    ("seed", "split", "index"),
    [(4, "val", 17), (3, "train", 17), (3, "val", 27)],
    ids=["seed", "split", "number"],
)
def test_another_seed_split_or_number_gives_another_image(
    seed: int, split: str, index: int
) -> None:
    image, _ = render(3, "val", 17)
    other, _ = render(seed, split, index)
    assert (other != image).mean() > 0.9


def render_small(split: str, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The first images of a split as rows of 64 × 64 × 3 values, and their labels."""
    rows = []
    labels = []
    for index in range(count):
        image, label = render(0, split, index)
        rows.append(image.reshape(64, 4, 64, 4, 3).mean((1, 3)).ravel())
        labels.append(label)
    return np.array(rows), np.array(labels)


def test_a_linear_classifier_on_pixels_fails() -> None:
    """Ridge regression on 64 × 64 pixels, at its best penalty, misses most held-out images."""
    train, train_labels = render_small("train", 1500)
    val, val_labels = render_small("val", 500)
    mean = train.mean(0)
    train = (train - mean) / 255
    val = (val - mean) / 255
    kernel = train @ train.T
    targets = np.eye(len(CLASSES))[train_labels]
    errors = []
    for penalty in 10.0 ** np.arange(-1, 5):
        weights = np.linalg.solve(kernel + penalty * np.eye(len(train)), targets)
        scores = val @ train.T @ weights
        errors.append((scores.argmax(1) != val_labels).mean())
    assert min(errors) > 0.5, errors
