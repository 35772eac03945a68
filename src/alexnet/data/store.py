"""A prepared store: raw uint8 pictures in flat shards, memory-mapped, with their labels and statistics.

<folder>/manifest.json        classes, counts, hashes, colour statistics, what it was prepared with
<folder>/train-00000.bin …    up to 4096 pictures each, (n, size, size, 3), no header
<folder>/train-labels.npy     int64
<folder>/mean.npy             (size, size, 3) float32, mean of the training pictures, 0-255
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

FORMAT = 1
SHARD = 4096  # pictures; 805 MB at 256 × 256


class Split:
    """The pictures and labels of `train` or `val`."""

    def __init__(self, shards: Sequence[np.ndarray], labels: np.ndarray, size: int):
        self.shards, self.labels, self.size = shards, labels, size

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """Copies the pictures `indices` into `out`, (len(indices), size, size, 3) uint8."""
        for row, index in enumerate(indices):
            shard, place = divmod(int(index), SHARD)
            out[row] = self.shards[shard][place]


class Store:
    """A store opened for reading. Raises FileNotFoundError if `folder` holds none, and ValueError that lists all that
    is wrong with it."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        file = self.folder / "manifest.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"data.folder={folder} holds no prepared store (no manifest.json): "
                f"run `python prepare.py source=… folder={folder}` first"
            )
        self.manifest: dict[str, Any] = _read_manifest(file)
        self.size: int = self.manifest["size"]
        self.classes: list[str] = self.manifest["classes"]
        problems = self._problems()
        if problems:
            raise ValueError(
                f"data.folder={folder} is not whole: {'; '.join(problems)}. Delete it and prepare it again"
            )
        self.mean = np.load(self.folder / "mean.npy")
        self.color_std = np.array(self.manifest["color_std"], np.float32)
        self.color_vectors = np.array(self.manifest["color_vectors"], np.float32)
        self.splits = {name: self._split(name) for name in self.manifest["splits"]}

    def _problems(self) -> list[str]:
        problems = self._array_problems("mean.npy", (self.size, self.size, 3))
        for name, split in self.manifest["splits"].items():
            for shard in split["shards"]:
                path = self.folder / shard["file"]
                expected = shard["count"] * self.size**2 * 3
                actual = path.stat().st_size if path.is_file() else 0
                if actual != expected:
                    problems.append(f"{path.name} has {actual} bytes and not {expected}")
            problems += self._label_problems(f"{name}-labels.npy", split["count"])
        return problems

    def _label_problems(self, name: str, count: int) -> list[str]:
        if problems := self._array_problems(name, (count,)):
            return problems
        labels = np.load(self.folder / name)
        inside = count == 0 or 0 <= labels.min() <= labels.max() < len(self.classes)
        return [] if inside else [f"{name} has labels outside 0..{len(self.classes) - 1}"]

    def _array_problems(self, name: str, shape: tuple[int, ...]) -> list[str]:
        try:
            actual = np.load(self.folder / name).shape
        except (OSError, ValueError, EOFError):
            return [f"{name} is missing or torn"]
        return [] if actual == shape else [f"{name} has shape {actual} and not {shape}"]

    def _split(self, name: str) -> Split:
        shape = (self.size, self.size, 3)
        shards = [
            np.memmap(self.folder / shard["file"], np.uint8, "r", shape=(shard["count"], *shape))
            for shard in self.manifest["splits"][name]["shards"]
        ]
        return Split(shards, np.load(self.folder / f"{name}-labels.npy"), self.size)


def open_store(folder: str | Path, make: Callable[[Path], None] | None = None) -> Store:
    """The store in `folder`, which `make` fills first if it is given. Raises what `Store` and `make` do."""
    if make:
        make(Path(folder))
    return Store(folder)


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text())
    except ValueError:
        raise ValueError(f"{file} is torn: delete {file.parent} and prepare it again") from None
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {manifest.get('format')} and not {FORMAT}: delete {file.parent} and prepare it again"
        )
    return manifest


class StoreWriter:
    """Writes a store that appears under its name only when it is whole; use it in a `with` statement.

    Raises FileExistsError if the folder is there already, and ValueError unless both `train` and `val` have pictures.

    `prepared_with` is kept in the manifest: source, resampler, versions.
    """

    def __init__(self, folder: str | Path, size: int, classes: list[str], prepared_with: dict[str, Any]):
        self.folder, self.size, self.classes, self.prepared_with = Path(folder), size, list(classes), prepared_with
        self.partial = self.folder.with_name(self.folder.name + ".partial")
        self.writers: dict[str, _SplitWriter] = {}
        self.sum = np.zeros((size, size, 3), np.int64)
        self.products = np.zeros((3, 3))

    def __enter__(self) -> "StoreWriter":
        if self.folder.exists():
            raise FileExistsError(f"folder={self.folder} is there already: give another folder, or delete it")
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self

    def add(self, split: str, pictures: np.ndarray, labels: np.ndarray) -> None:
        """Appends (n, size, size, 3) uint8 pictures. Raises ValueError if a label lies outside the classes."""
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(f"{split}: labels {labels.min()}..{labels.max()} lie outside 0..{len(self.classes) - 1}")
        if split not in self.writers:
            self.writers[split] = _SplitWriter(self.partial, split)
        self.writers[split].add(pictures, labels)
        if split == "train":
            self.sum += pictures.sum(0, dtype=np.int64)
            for picture in pictures.reshape(len(pictures), -1, 3).astype(np.float64):
                self.products += picture.T @ picture  # integers below 2^53: exact

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            for writer in self.writers.values():
                writer.close()
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)  # a whole store has left it by now

    def _finish(self) -> None:
        if "train" not in self.writers or "val" not in self.writers:
            raise ValueError(f"{self.folder} needs pictures to train on and to validate with; one of them has none")
        count = len(self.writers["train"].labels)
        pixels = count * self.size**2
        mean = self.sum.sum((0, 1)) / pixels
        eigenvalues, vectors = np.linalg.eigh(self.products / pixels - np.outer(mean, mean))
        np.save(self.partial / "mean.npy", (self.sum / count).astype(np.float32))
        manifest = {
            "format": FORMAT,
            "size": self.size,
            "classes": self.classes,
            "splits": {name: writer.summary(len(self.classes)) for name, writer in self.writers.items()},
            "channel_mean": mean.tolist(),
            "color_std": np.sqrt(eigenvalues.clip(0)).tolist(),
            "color_vectors": vectors.tolist(),
            "prepared_with": self.prepared_with,
        }
        (self.partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        self.partial.rename(self.folder)


class _SplitWriter:
    """Appends one split's pictures to shard after shard."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.labels: list[int] = []
        self.shards: list[dict[str, Any]] = []
        self.file: BinaryIO | None = None

    def add(self, pictures: np.ndarray, labels: np.ndarray) -> None:
        for picture in pictures:
            if self.file is None or self.shards[-1]["count"] == SHARD:
                self._next_shard()
            assert self.file is not None
            data = picture.tobytes()
            self.file.write(data)
            self.hash.update(data)
            self.shards[-1]["count"] += 1
        self.labels += labels.tolist()

    def _next_shard(self) -> None:
        self.close_shard()
        name = f"{self.name}-{len(self.shards):05d}.bin"
        self.file, self.hash = (self.folder / name).open("wb"), hashlib.sha256()
        self.shards.append({"file": name, "count": 0})

    def close_shard(self) -> None:
        if self.file is not None:
            self.file.close()
            self.shards[-1]["sha256"] = self.hash.hexdigest()

    def close(self) -> None:
        self.close_shard()
        self.file = None
        np.save(self.folder / f"{self.name}-labels.npy", np.array(self.labels, np.int64))

    def summary(self, classes: int) -> dict[str, Any]:
        histogram = np.bincount(self.labels, minlength=classes).tolist()
        return {"count": len(self.labels), "histogram": histogram, "shards": self.shards}
