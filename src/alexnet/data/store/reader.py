"""Reading a store: `Store` opens it and checks that it is complete, `Split` reads images.

Shards are memory-mapped: reading an image copies it from the system's page cache or, if it is not
there, waits for the disk. The images of a batch are scattered, and to wait for one after the other
would leave the disk idle most of the time. So `Split.read` first requests the pages of the whole
batch, which the disk then reads at once. If the page cache holds everything, as it does from the
second epoch on if there is enough memory, the requests only cost time (7 % of a raw batch).
Therefore they are made only if the batch before came from the disk, at least in part: then the
system's count of blocks read for this thread (`ru_inblock`) has grown.
"""

import hashlib
import resource
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
import xxhash

from alexnet.data.store.format import Manifest, read_manifest
from alexnet.data.store.shards import Shard, Shards
from alexnet.errors import UserError, join_problems

# torch warns of tensors over read-only memory; nobody writes to those made here.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Piece(NamedTuple):
    """The bytes of an image."""

    shard: Shard
    begin: int
    end: int


class Split:
    """The images and labels of one split."""

    def __init__(self, shards: Shards, name: str, manifest: Manifest):
        entries = [entry for entry in manifest["splits"][name]["shards"] if entry["count"]]
        counts = [entry["count"] for entry in entries]
        self.shards = shards
        self.files = [entry["file"] for entry in entries]
        self.size = manifest["size"]
        self.labels: np.ndarray = np.load(shards.folder / f"{name}-labels.npy")
        # The first image of each shard, and the number of images.
        self.starts = np.cumsum([0, *counts])
        # Where each JPEG file ends in its shard; raw images have the same size.
        self.ends: np.ndarray | None = None
        if manifest["encoding"] != "raw":
            self.ends = np.load(shards.folder / f"{name}-ends.npy")
        self.from_disk = True  # whether the last batch was read from there, at least in part

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """The images of these numbers, (len(rows), size, size, 3) uint8."""
        out = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        self.read(rows, out)
        return out

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Reads the images of these numbers into `out`, (len(rows), size, size, 3) uint8."""
        pieces = self._find_pieces(rows)
        blocks_before = _count_blocks_read()
        if self.from_disk:
            for piece in pieces:
                piece.shard.request_pages(piece.begin, piece.end)
        stored = [piece.shard.bytes[piece.begin : piece.end] for piece in pieces]
        if self.ends is None:
            _concatenate(stored, out)
        else:
            for jpeg, image in zip(stored, out, strict=True):
                simplejpeg.decode_jpeg(jpeg, "RGB", buffer=image)
        self.from_disk = _count_blocks_read() > blocks_before

    def prefetch(self, rows: np.ndarray) -> None:
        """Announces that these images will be read soon."""
        numbers = np.unique(self._find_shards(rows))
        self.shards.prefetch(self.files[number] for number in numbers)

    def _find_shards(self, rows: np.ndarray) -> np.ndarray:
        """The number of each image's shard."""
        return np.searchsorted(self.starts, rows, "right") - 1

    def _find_pieces(self, rows: np.ndarray) -> list[Piece]:
        numbers = self._find_shards(rows)
        places = rows - self.starts[numbers]
        if self.ends is None:
            image_bytes = 3 * self.size**2
            begins = places * image_bytes
            ends = begins + image_bytes
        else:
            begins = np.where(places > 0, self.ends[rows - 1], 0)
            ends = self.ends[rows]
        shards = [self.shards.open(self.files[number]) for number in numbers.tolist()]
        return list(map(Piece, shards, begins.tolist(), ends.tolist()))


class Store:
    """A store opened for reading. Raises UserError that lists everything wrong with it."""

    def __init__(self, shards: Shards):
        self.shards = shards
        self.folder = shards.folder
        self.manifest = read_manifest(shards.folder, shards.home)
        self.size = self.manifest["size"]
        self.classes = self.manifest["classes"]
        self.names = self.manifest.get("names", self.classes)  # for people
        problems = list(self._find_problems())
        if problems:
            raise UserError(
                f"data.folder={shards.home} is incomplete or damaged: {join_problems(problems)}. "
                "Delete it and prepare it again"
            )
        self.mean: np.ndarray = np.load(self.folder / "mean.npy")
        # Principal components of the training images' RGB values: standard deviations along them,
        # and the components in columns.
        self.color_std = np.array(self.manifest["color_std"], np.float32)
        self.color_vectors = np.array(self.manifest["color_vectors"], np.float32)
        self.splits = {name: Split(shards, name, self.manifest) for name in self.manifest["splits"]}

    def verify(self) -> None:
        """Reads every shard and raises UserError that lists those that have changed."""
        changed = []
        for split in self.manifest["splits"].values():
            for shard in split["shards"]:
                with (self.folder / shard["file"]).open("rb") as file:
                    digest = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
                if digest != shard["xxh3_128"]:
                    changed.append(shard["file"])
        if changed:
            raise UserError(
                f"{self.folder}: {join_problems(changed)} changed since the store was written. "
                "Delete it and prepare it again"
            )

    def count_largest_bytes(self, count: int) -> int:
        """Bytes of the `count` largest shards together."""
        sizes = []
        for split in self.manifest["splits"].values():
            sizes += [shard["bytes"] for shard in split["shards"]]
        return sum(sorted(sizes)[-count:])

    def _find_problems(self) -> Iterator[str]:
        yield from self._check_array("mean.npy", (self.size, self.size, 3))
        for name, split in self.manifest["splits"].items():
            for shard in split["shards"]:
                size = self.shards.size(shard["file"])
                if size != shard["bytes"]:
                    yield f"{shard['file']} has {size} bytes instead of {shard['bytes']}"
            yield from self._check_labels(f"{name}-labels.npy", split["count"])
            if self.manifest["encoding"] != "raw":
                yield from self._check_array(f"{name}-ends.npy", (split["count"],))

    def _check_labels(self, name: str, count: int) -> list[str]:
        problems = self._check_array(name, (count,))
        if problems or count == 0:
            return problems
        labels = np.load(self.folder / name)
        if labels.min() < 0 or labels.max() >= len(self.classes):
            return [f"{name} has labels outside 0..{len(self.classes) - 1}"]
        return []

    def _check_array(self, name: str, shape: tuple[int, ...]) -> list[str]:
        try:
            actual = np.load(self.folder / name).shape
        except (OSError, ValueError, EOFError):
            return [f"{name} is missing or corrupt"]
        return [] if actual == shape else [f"{name} has shape {actual} instead of {shape}"]


def _count_blocks_read() -> int:
    """Blocks that the system has read from disks for this thread so far."""
    who = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)  # of the process on macOS
    return resource.getrusage(who).ru_inblock


def _concatenate(pieces: list[np.ndarray], out: np.ndarray) -> None:
    """Copies the pieces into `out` in one call that releases the interpreter's lock.

    Threads that copied one image after the other would queue for the lock.
    """
    import torch  # takes a second, which checking options must not wait for

    tensors = [torch.from_numpy(piece) for piece in pieces]
    torch.cat(tensors, out=torch.from_numpy(out).view(-1))
