"""CIFAR-10 as its authors distribute it: six pickled files of 10,000 rows of bytes each."""

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.sources.source import EncodedImage
from alexnet.errors import UserError

META = "batches.meta"  # names of the classes
BATCHES = {
    "train": ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
    "val": ["test_batch"],
}
# All that a pickled NumPy array names; protocol 2 encodes its bytes as text.
ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


class Batch(NamedTuple):
    """The content of one file or several."""

    # (n, 3 * 32 * 32): the red, the green and the blue plane of each image
    rows: NDArray[np.uint8]
    labels: list[int]


class CifarSource:
    """The images of the folder `cifar-10-batches-py`; all 180 MB are held in memory."""

    def __init__(self, root: Path) -> None:
        _check_files(root)
        self.classes = _read_classes(root / META)
        self.pixels: dict[str, NDArray[np.uint8]] = {}
        self.labels: dict[str, list[int]] = {}
        self.counts: dict[str, int] = {}
        for split, names in BATCHES.items():
            batch = _read_batches(root, names)
            self.pixels[split] = batch.rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            self.labels[split] = batch.labels
            self.counts[split] = len(batch.labels)
        self.fingerprint = self._compute_fingerprint()

    def read(self, split: str, rows: range) -> Iterator[EncodedImage]:
        for row in rows:
            pixels = self.pixels[split][row]
            yield EncodedImage(pixels, self.labels[split][row], f"{split} row {row}")

    def _compute_fingerprint(self) -> str:
        digest = hashlib.sha256()
        for pixels in self.pixels.values():
            digest.update(pixels.tobytes())
        return digest.hexdigest()


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles nothing but NumPy arrays and plain values, since a pickle may name any function.

    A file that names another one ends with UnpicklingError before that is imported.
    """

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # its name before NumPy 2
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _check_files(root: Path) -> None:
    names = [META, *BATCHES["train"], *BATCHES["val"]]
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise UserError(f"source={root} lacks {', '.join(missing)}: unpack the archive again")


def _read_classes(file: Path) -> list[str]:
    names = _unpickle(file).get("label_names")
    if not isinstance(names, list):
        raise UserError(f"{file} is corrupt: it has no label_names")
    return names


def _read_batches(root: Path, names: list[str]) -> Batch:
    rows = []
    labels = []
    for name in names:
        batch = _read_batch(root / name)
        rows.append(batch.rows)
        labels += batch.labels
    return Batch(np.concatenate(rows), labels)


def _read_batch(file: Path) -> Batch:
    content = _unpickle(file)
    labels = content.get("labels")
    rows = content.get("data")
    if not isinstance(labels, list) or not isinstance(rows, np.ndarray):
        raise UserError(f"{file} is corrupt or not a CIFAR-10 batch: it lacks data or labels")
    if rows.shape != (len(labels), 3 * 32 * 32):
        raise UserError(
            f"{file} is corrupt: its data have shape {rows.shape}, but it has {len(labels)} labels"
        )
    return Batch(rows, labels)


def _unpickle(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as opened:
            content = ArrayUnpickler(opened, encoding="latin1").load()
    except Exception as error:  # a corrupt pickle may raise any
        raise UserError(f"{file} is corrupt or not a CIFAR-10 batch: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is corrupt or not a CIFAR-10 batch: it is not a mapping")
    return content
