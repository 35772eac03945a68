"""Where images come from: the layouts in which people have ImageNet and other sets."""

from pathlib import Path

from alexnet.data.sources.cifar import CifarSource
from alexnet.data.sources.folders import FolderSource
from alexnet.data.sources.parquet import ParquetSource
from alexnet.data.sources.source import EncodedImage, Source
from alexnet.errors import UserError

__all__ = ["EncodedImage", "Source", "open_source"]


def open_source(path: str | Path, labels: str | None = None) -> Source:
    """The source in folder `path`, whose layout is recognized by the files in it.

    `labels` is a file with the classes of a validation set that has no class folders. Raises
    UserError that lists what is wrong with the source.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"source={path} is not a directory")
    if any(folder.glob("*.parquet")):
        return ParquetSource(folder)
    batches = folder / "cifar-10-batches-py"
    if batches.is_dir():
        return CifarSource(batches)
    return FolderSource(folder, labels)
