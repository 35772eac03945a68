"""The embedded image set is honest and the same everywhere."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from alexnet.data.shapes import CLASSES, render


def test_a_image_depends_on_seed_split_and_number_alone():
    alone, label = render(3, "val", 17)
    with ThreadPoolExecutor(3) as pool:
        many = list(pool.map(lambda i: render(3, "val", i), range(15, 20)))
    np.testing.assert_array_equal(alone, many[2][0])
    assert label == 7 == many[2][1] and alone.shape == (256, 256, 3) and alone.dtype == np.uint8
    for other in (render(4, "val", 17), render(3, "train", 17), render(3, "val", 27)):
        assert (other[0] != alone).mean() > 0.9


def small(split: str, index: int) -> tuple[np.ndarray, int]:
    image, label = render(0, split, index)
    return image.reshape(64, 4, 64, 4, 3).mean((1, 3)).ravel(), label


def test_a_linear_classifier_on_pixels_fails():
    """Ridge regression on 64 × 64 pixels, at its best penalty, misses most of the held-out images."""
    (x, y), (held_out, truth) = (
        map(np.array, zip(*(small(split, i) for i in range(count)), strict=True))
        for split, count in (("train", 1500), ("val", 500))
    )
    mean = x.mean(0)
    x, held_out = (x - mean) / 255, (held_out - mean) / 255
    kernel, wanted = x @ x.T, np.eye(len(CLASSES))[y]
    errors = []
    for penalty in 10.0 ** np.arange(-1, 5):
        scores = held_out @ x.T @ np.linalg.solve(kernel + penalty * np.eye(len(x)), wanted)
        errors.append((scores.argmax(1) != truth).mean())
    assert min(errors) > 0.5, errors
