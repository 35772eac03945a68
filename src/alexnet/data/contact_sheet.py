"""What a store looks like: people look before they train."""

from typing import TYPE_CHECKING

import numpy as np

from alexnet.data.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def contact_sheet(store: Store) -> "Figure":
    """64 training pictures, drawn at random, with their classes."""
    from matplotlib.figure import Figure

    split = store.splits["train"]
    rows = np.random.default_rng(0).permutation(len(split))[:64]
    pictures = np.empty((len(rows), store.size, store.size, 3), np.uint8)
    split.read(rows, pictures)
    figure = Figure(figsize=(16, 17.5), layout="constrained")
    for axes, picture, row in zip(figure.subplots(8, 8).flat, pictures, rows, strict=False):
        axes.imshow(picture)
        axes.set_title(store.classes[split.labels[row]][:24], fontsize=9)
    for axes in figure.axes:
        axes.axis("off")
    return figure
