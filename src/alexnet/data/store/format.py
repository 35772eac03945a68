"""What a store's manifest holds, and reading it."""

import json
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from alexnet.errors import UserError

FORMAT = 3  # counted up when older stores can no longer be read
IMAGES_PER_SHARD = 256  # 50 MB of 256 × 256 images


class ShardEntry(TypedDict):
    file: str
    count: int  # of images
    bytes: int
    xxh3_128: str  # hash of the file


class SplitEntry(TypedDict):
    count: int  # of images
    histogram: list[int]  # images of each class
    shards: list[ShardEntry]


class Manifest(TypedDict):
    format: int
    size: int  # height and width of the images
    encoding: str  # raw or jpeg
    classes: list[str]
    names: NotRequired[list[str]]  # of the classes, for people
    splits: dict[str, SplitEntry]
    channel_mean: list[float]
    color_std: list[float]
    color_vectors: list[list[float]]
    made_of: dict[str, object]  # tells one store from another
    made_with: dict[str, object]  # versions of the packages that made it


def read_manifest(folder: Path, home: str) -> Manifest:
    """The manifest in `folder`; messages name the store by `home`."""
    file = folder / "manifest.json"
    if not file.is_file():
        raise UserError(
            f"data.folder={home} holds no prepared store (no manifest.json): "
            f"run `python prepare.py source=… folder={home}` first"
        )
    try:
        manifest = json.loads(file.read_text())
        version = manifest["format"]
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"data.folder={home}: manifest.json is corrupt; delete the store and prepare it again"
        ) from None
    if version != FORMAT:
        raise UserError(
            f"data.folder={home} has format {version} instead of {FORMAT}; "
            "delete the store and prepare it again"
        )
    return cast(Manifest, manifest)
