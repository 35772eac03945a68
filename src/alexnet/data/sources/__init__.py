"""Where images come from, in whatever form. A source gives encoded images by number, so that any part of it can be
read again."""

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alexnet.data.sources.folders import Encoded, Files
from alexnet.data.sources.parquet import Parquet

NAMES = {
    "train": ("train", "ILSVRC2012_img_train.tar", "train.tar"),
    "val": ("val", "validation", "valid", "test", "ILSVRC2012_img_val.tar", "val.tar"),
}


class Source(Protocol):
    """Images of `train` and `val`, `counts` of each; `fingerprint` tells one set from another."""

    classes: list[str]
    counts: dict[str, int]
    fingerprint: str

    def read(self, split: str, rows: range) -> Iterator[Encoded]: ...


def open_source(path: str | Path, labels: str | None = None) -> Source:
    """The source in folder `path`, recognized by what it holds; `labels` is a file with the classes of a flat
    validation set. Raises FileNotFoundError, or ValueError that lists what is wrong with it."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"source={path} is no folder")
    if any(folder.glob("*.parquet")):
        return Parquet(folder)
    if (folder / "cifar-10-batches-py").is_dir():
        return CifarBatches(folder / "cifar-10-batches-py")
    halves = {
        split: next((folder / n for n in names if (folder / n).exists()), None)
        for split, names in NAMES.items()
    }
    if missing := [split for split, half in halves.items() if half is None]:
        raise ValueError(
            f"source={path} has nothing for {' and '.join(missing)}: it needs train-*.parquet and validation-*.parquet "
            f"(or test-*), or one of {', '.join(NAMES['train'])} and one of {', '.join(NAMES['val'])}"
        )
    return Files(folder, {split: Path(str(half)) for split, half in halves.items()}, labels)


class CifarBatches:
    """CIFAR-10 as its authors give it: `data_batch_1` … `data_batch_5` and `test_batch`, pickled rows of bytes."""

    def __init__(self, root: Path):
        names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "val": ["test_batch"]}
        if missing := [
            n for n in ["batches.meta", *names["train"], *names["val"]] if not (root / n).is_file()
        ]:
            raise ValueError(f"source={root} lacks {', '.join(missing)}")
        self.classes = _plain_pickle(root / "batches.meta")["label_names"]
        self.pixels, self.labels = {}, {}
        for split, files in names.items():
            batches = [_plain_pickle(root / name) for name in files]
            rows = np.concatenate([batch["data"] for batch in batches])
            self.pixels[split] = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            self.labels[split] = [label for batch in batches for label in batch["labels"]]
        self.counts = {split: len(labels) for split, labels in self.labels.items()}
        self.fingerprint = hashlib.sha256(
            b"".join(p.tobytes() for p in self.pixels.values())
        ).hexdigest()

    def read(self, split: str, rows: range) -> Iterator[Encoded]:
        for row in rows:
            yield Encoded(self.pixels[split][row], self.labels[split][row], f"{split} row {row}")


class _Arrays(pickle.Unpickler):
    """Unpickles NumPy arrays and plain values alone: a pickle may name any function to call."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in (
            "ndarray",
            "dtype",
            "_reconstruct",
        ):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _plain_pickle(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            return _Arrays(opened, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{file} is torn or no CIFAR-10 batch: {error}") from None
