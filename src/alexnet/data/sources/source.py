"""What a source is, however its images are stored: numbered, encoded images with their classes."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class EncodedImage(NamedTuple):
    """An image as its source stores it."""

    data: bytes | NDArray[np.uint8]  # an image file, or (height, width, 3) pixels
    label: int  # index of its class in `Source.classes`
    name: str  # for messages


class Source(Protocol):
    """Images of the splits `train` and `val`.

    They are read by number, so that any range of them can be read again by any thread.
    """

    classes: list[str]
    counts: dict[str, int]  # images of each split
    fingerprint: str  # tells one set of images from another

    def read(self, split: str, rows: range) -> Iterator[EncodedImage]: ...
