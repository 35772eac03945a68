"""What a store looks like, to be looked at before training from it."""

import numpy as np
from PIL import Image, ImageDraw

from alexnet.data.store import Store

COLUMNS = 8
IMAGE_SIZE = 160  # pixels
CAPTION_HEIGHT = 16
CAPTION_LENGTH = 24  # characters


def draw_contact_sheet(store: Store) -> Image.Image:
    """64 training images, drawn at random, with their classes."""
    split = store.splits["train"]
    rows = np.random.default_rng(0).permutation(len(split))[: COLUMNS**2]
    row_height = CAPTION_HEIGHT + IMAGE_SIZE
    row_count = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * IMAGE_SIZE, row_count * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (row, pixels) in enumerate(zip(rows, split.images(rows), strict=True)):
        x = place % COLUMNS * IMAGE_SIZE
        y = place // COLUMNS * row_height
        caption = store.names[split.labels[row]][:CAPTION_LENGTH]
        draw.text((x + 2, y + 2), caption, "black")
        image = Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE))
        sheet.paste(image, (x, y + CAPTION_HEIGHT))
    return sheet
