"""A prepared store: square images of one size with their labels and statistics.

manifest.json        classes, their names, counts, hashes, color statistics, how it was made
train-00000.bin …    shards of up to 256 images: (size, size, 3) uint8 or JPEG files, no header
train-labels.npy     int64
train-ends.npy       JPEG only: int64, where each image ends in its shard
mean.npy             (size, size, 3) float32, mean of the training images, 0-255
bad.tsv              images that could not be read, and why
contact-sheet.jpg    64 training images with their classes

The other splits, `val` and where the source has one `test`, have such files too. `writer.py`
writes a store, `reader.py` reads it, `shards.py` gets its shards from a folder or a URL.
"""

from collections.abc import Callable
from pathlib import Path

from alexnet.data.store.reader import Split, Store
from alexnet.data.store.shards import LocalShards, RemoteShards

__all__ = ["CACHE", "CACHE_GB", "Split", "Store", "open_store"]

# Where shards of a URL are kept by default, and how many gigabytes of them.
CACHE = "outputs/cache"
CACHE_GB = 10.0


def open_store(
    folder: str | Path,
    make: Callable[[Path], None] | None = None,
    cache: str | Path = CACHE,
    cache_gb: float = CACHE_GB,
) -> Store:
    """The store in `folder`, which `make` fills first if it is given; or the one at a URL.

    Shards of a URL are downloaded into `cache`, at most `cache_gb` of them. Raises UserError if
    there is no store, if it is damaged, or if it can't be downloaded.
    """
    if "://" in str(folder):
        return Store(RemoteShards(str(folder), Path(cache), int(cache_gb * 1e9)))
    if make:
        make(Path(folder))
    return Store(LocalShards(folder))
