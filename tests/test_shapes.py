"""The embedded picture set is honest and the same everywhere."""

import numpy as np

from alexnet.data.shapes import CLASSES, render, render_many


def test_a_picture_depends_on_seed_split_and_number_alone():
    alone, label = render(3, "val", 17)
    many, labels = render_many(3, "val", range(15, 20))
    np.testing.assert_array_equal(alone, many[2])
    assert label == labels[2] and alone.shape == (256, 256, 3) and alone.dtype == np.uint8
    for other in (render(4, "val", 17), render(3, "train", 17), render(3, "val", 27)):
        assert (other[0] != alone).mean() > 0.9


def test_a_linear_classifier_on_pixels_fails():
    """Ridge regression on 64 × 64 pixels, at its best penalty, misses most of the held-out pictures."""
    sets = [render_many(0, split, range(count)) for split, count in (("train", 1500), ("val", 500))]
    (x, y), (held_out, truth) = [
        (p.reshape(len(p), 64, 4, 64, 4, 3).mean((2, 4)).reshape(len(p), -1), labels) for p, labels in sets
    ]
    mean = x.mean(0)
    x, held_out = (x - mean) / 255, (held_out - mean) / 255
    kernel, wanted = x @ x.T, np.eye(len(CLASSES))[y]
    errors = []
    for penalty in 10.0 ** np.arange(-1, 5):
        scores = held_out @ x.T @ np.linalg.solve(kernel + penalty * np.eye(len(x)), wanted)
        errors.append((scores.argmax(1) != truth).mean())
    assert min(errors) > 0.5, errors
