"""A prepared store: images in flat shards, memory-mapped, with their labels and statistics. `write.py` makes it.

<folder>/manifest.json        classes, their names, counts, hashes, color statistics, what it was made of and with
<folder>/train-00000.bin …    up to 256 images each, without header: (size, size, 3) uint8, or JPEG files
<folder>/train-labels.npy     int64
<folder>/train-ends.npy       for JPEG: int64, where each image ends in its shard
<folder>/mean.npy             (size, size, 3) float32, mean of the training images, 0-255
<folder>/bad.tsv              images that could not be read, and why
<folder>/contact-sheet.jpg    64 training images with their classes
"""

from __future__ import annotations

import hashlib
import json
import mmap
import resource
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg
import xxhash

if TYPE_CHECKING:
    from alexnet.data.store.shards import Remote

FORMAT = 3
SHARD = 256  # images; 50 MB at 256 × 256
CACHE, CACHE_GB = "outputs/cache", 10.0  # of a URL's shards

warnings.filterwarnings(
    "ignore", message="The given NumPy array is not writable"
)  # torch's; nobody writes to a map


class Shard:
    """A file's `bytes`, memory-mapped. The system reads no more than is asked for, since what lies around a image is
    seldom the next."""

    def __init__(self, file: Path):
        with file.open("rb") as opened:
            self.memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self.memory.madvise(mmap.MADV_RANDOM)
        self.bytes = np.frombuffer(self.memory, np.uint8)

    def expect(self, begin: int, end: int) -> None:
        """Asks the disk for bytes that will be read soon, without waiting for them."""
        start = begin - begin % mmap.PAGESIZE
        self.memory.madvise(mmap.MADV_WILLNEED, start, end - start)


class Split:
    """The images and labels of `train` or `val`."""

    def __init__(self, folder: Path, name: str, manifest: dict[str, Any], remote: Remote | None):
        shards = [shard for shard in manifest["splits"][name]["shards"] if shard["count"]]
        self.size: int = manifest["size"]
        self.labels: np.ndarray = np.load(folder / f"{name}-labels.npy")
        self.starts = np.cumsum(
            [0] + [shard["count"] for shard in shards]
        )  # each shard's first image
        self.remote, self.files = remote, [shard["file"] for shard in shards]
        self.shards = [] if remote else [Shard(folder / file) for file in self.files]
        self.from_disk = (
            True  # was the last batch; what lies in the page cache needs no hints, which cost 7 %
        )
        self.ends = None if manifest["encoding"] == "raw" else np.load(folder / f"{name}-ends.npy")

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """Copies the images `indices` into `out`, (len(indices), size, size, 3) uint8."""
        shards = self._shards_of(indices)
        places = indices - self.starts[shards]
        if self.ends is None:
            begins, ends = places * out[0].nbytes, (places + 1) * out[0].nbytes
        else:
            begins, ends = np.where(places > 0, self.ends[indices - 1], 0), self.ends[indices]
        pieces = [
            (self._shard(s), b, e)
            for s, b, e in zip(shards.tolist(), begins.tolist(), ends.tolist(), strict=True)
        ]
        before = _blocks_read()
        if self.from_disk:
            for shard, begin, end in pieces:
                shard.expect(begin, end)
        stored = [shard.bytes[begin:end] for shard, begin, end in pieces]
        if self.ends is None:
            _join(stored, out)
        else:
            for jpeg, row in zip(stored, out, strict=True):
                simplejpeg.decode_jpeg(jpeg, "RGB", buffer=row)
        self.from_disk = _blocks_read() > before

    def expect(self, indices: np.ndarray) -> None:
        """Says that the images `indices` will be read soon."""
        if self.remote:
            self.remote.expect(self.files[shard] for shard in np.unique(self._shards_of(indices)))

    def _shards_of(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, indices, "right") - 1

    def _shard(self, shard: int) -> Shard:
        return self.remote.shard(self.files[shard]) if self.remote else self.shards[shard]


class Store:
    """A store opened for reading, its shards in `folder` or with `remote`. Raises FileNotFoundError if `folder` holds
    none, and ValueError that lists all that is wrong with it."""

    def __init__(self, folder: str | Path, remote: Remote | None = None):
        self.folder, self.remote = Path(folder), remote
        file = self.folder / "manifest.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"data.folder={folder} holds no prepared store (no manifest.json): "
                f"run `python prepare.py source=… folder={folder}` first"
            )
        self.manifest: dict[str, Any] = _read_manifest(file)
        self.size: int = self.manifest["size"]
        self.classes: list[str] = self.manifest["classes"]
        self.names: list[str] = self.manifest.get(
            "names", self.classes
        )  # of the classes, for people
        if problems := list(self._problems()):
            shown = "; ".join(problems[:5]) + (
                f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            )
            home = remote.url if remote else folder
            raise ValueError(
                f"data.folder={home} is not whole: {shown}. Delete it and prepare it again"
            )
        self.mean = np.load(self.folder / "mean.npy")
        self.color_std = np.array(self.manifest["color_std"], np.float32)
        self.color_vectors = np.array(self.manifest["color_vectors"], np.float32)
        self.splits = {
            name: Split(self.folder, name, self.manifest, remote)
            for name in self.manifest["splits"]
        }

    def verify(self) -> None:
        """Reads every shard again. Raises ValueError that lists those whose hash differs from the manifest's."""
        changed = []
        for split in self.manifest["splits"].values():
            for shard in split["shards"]:
                with (self.folder / shard["file"]).open("rb") as file:
                    if hashlib.file_digest(file, xxhash.xxh3_128).hexdigest() != shard["xxh3_128"]:
                        changed.append(shard["file"])
        if changed:
            raise ValueError(
                f"{self.folder}: {', '.join(changed)} changed since it was written. Prepare it again"
            )

    def _problems(self) -> Iterator[str]:
        yield from self._array_problems("mean.npy", (self.size, self.size, 3))
        for name, split in self.manifest["splits"].items():
            for shard in split["shards"]:
                actual = self._bytes(shard["file"])
                if actual != shard["bytes"]:
                    yield f"{shard['file']} has {actual} bytes and not {shard['bytes']}"
            yield from self._label_problems(f"{name}-labels.npy", split["count"])
            if self.manifest["encoding"] != "raw":
                yield from self._array_problems(f"{name}-ends.npy", (split["count"],))

    def _bytes(self, name: str) -> int:
        if self.remote:
            return self.remote.sizes.get(name, 0)
        path = self.folder / name
        return path.stat().st_size if path.is_file() else 0

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


def _blocks_read() -> int:
    """Blocks that the system has read from a disk for this thread."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_inblock


def _join(pieces: list[np.ndarray], out: np.ndarray) -> None:
    """np.concatenate in one call without the GIL, for which threads that copy image by image would queue."""
    import torch

    torch.cat([torch.from_numpy(piece) for piece in pieces], out=torch.from_numpy(out).view(-1))


def open_store(
    folder: str | Path,
    make: Callable[[Path], None] | None = None,
    cache: str = CACHE,
    cache_gb: float = CACHE_GB,
) -> Store:
    """The store in `folder`, which `make` fills first if it is given; or at a URL, whose shards are fetched into
    `cache`, at most `cache_gb` of them. Raises what `Store`, `Remote` and `make` do."""
    if "://" in str(folder):
        from alexnet.data.store.shards import Remote  # imports fsspec

        remote = Remote(str(folder), Path(cache), int(cache_gb * 1e9))
        return Store(remote.folder, remote)
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
