"""What a store looks like: people look before they train."""

import numpy as np
from PIL import Image, ImageDraw

from alexnet.data.store.reader import Store

SIDE, LINE, COLUMNS = 160, 16, 8  # pixels of a image and of its label


def draw_contact_sheet(store: Store) -> Image.Image:
    """64 training images, drawn at random, with their classes."""
    split = store.splits["train"]
    rows = np.random.default_rng(0).permutation(len(split))[: COLUMNS**2]
    images = np.empty((len(rows), store.size, store.size, 3), np.uint8)
    split.read(rows, images)
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(rows) // COLUMNS) * (SIDE + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, row) in enumerate(zip(images, rows, strict=True)):
        x, y = i % COLUMNS * SIDE, i // COLUMNS * (SIDE + LINE)
        draw.text((x + 2, y + 2), store.names[split.labels[row]][:24], "black")
        sheet.paste(Image.fromarray(image).resize((SIDE, SIDE)), (x, y + LINE))
    return sheet
