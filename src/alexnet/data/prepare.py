"""Makes a store of any source: decodes, resizes and crops each image once (§2)."""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import simplejpeg
from omegaconf import DictConfig

from alexnet.data.decode import Resize, UnreadableImageError, decode
from alexnet.data.sources import EncodedImage, Source, open_source
from alexnet.data.sources.class_names import WORDNET_ID, find_class_names
from alexnet.data.store import Store
from alexnet.data.store.writer import Plan, PreparedImage, write_store
from alexnet.errors import UserError

log = logging.getLogger(__name__)
ILSVRC_2012 = {"train": 1_281_167, "val": 50_000}
Encoding = Literal["raw", "jpeg"]


@dataclass(frozen=True)
class Settings:
    """How an image of the source becomes one of the store. `conf/prepare.yaml` explains them."""

    size: int
    encoding: Encoding
    resize: Resize
    exif: bool
    quality: int

    def describe(self) -> dict[str, object]:
        """Those that make a difference; part of the `made_of` by which a store is recognized."""
        settings = asdict(self)
        if self.encoding == "raw":
            del settings["quality"]
        return settings


def prepare(config: DictConfig) -> None:
    """What `prepare.py` does."""
    if config.download:
        _download(config.download, Path(config.source))
    store = prepare_store(
        config.source,
        config.folder,
        config.size,
        labels=config.labels,
        encoding=config.encoding,
        quality=config.quality,
        resize=config.resize,
        exif=config.exif,
        max_bad=config.max_bad,
    )
    if config.verify:
        store.verify()
        log.info("the hash of every shard is right")
    _log_summary(store)


def prepare_store(
    path: str | Path,
    folder: str | Path,
    size: int,
    *,
    labels: str | None = None,
    encoding: Encoding = "raw",
    quality: int = 90,
    resize: Resize = "bicubic",
    exif: bool = False,
    max_bad: int = 0,
) -> Store:
    """The store in `folder`, which is made of the source `path` unless it is there already.

    Raises UserError if the source is not complete, if more than `max_bad` of its images can't be
    read, or if `folder` holds another store.
    """
    source = open_source(path, labels)
    settings = Settings(size, encoding, resize, exif, quality)
    plan = Plan(
        size=size,
        classes=source.classes,
        counts=source.counts,
        read=partial(_read_images, source, settings),
        made_of={  # by which an existing store is recognized
            "pictures": source.counts,  # a word of the file format
            "sha256": source.fingerprint,
            **settings.describe(),
        },
        made_with={
            "simplejpeg": version("simplejpeg"),
            "pillow": version("pillow"),
            "torch": version("torch"),
        },
        encoding=encoding,
        max_bad=max_bad,
        names=find_class_names(source.classes, Path(path)),
    )
    return write_store(folder, plan)


def _read_images(
    source: Source, settings: Settings, split: str, rows: range
) -> Iterator[PreparedImage]:
    for image in source.read(split, rows):
        yield _prepare_image(image, settings)


def _prepare_image(image: EncodedImage, settings: Settings) -> PreparedImage:
    try:
        pixels = decode(image.data, settings.size, settings.resize, exif=settings.exif)
    except UnreadableImageError as error:
        return PreparedImage(b"", None, image.label, image.name, problem=str(error))
    data: bytes | memoryview = pixels.data
    if settings.encoding == "jpeg":
        # The color planes have half the resolution, as in ImageNet's files.
        data = simplejpeg.encode_jpeg(pixels, settings.quality, colorsubsampling="420")
    return PreparedImage(data, pixels, image.label, image.name)


def _download(name: str, folder: Path) -> None:
    """Fetches a set by torchvision into `folder`, in a layout that `open_source` knows."""
    from torchvision import datasets  # imports torch, which takes seconds

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if name == "cifar10":
            datasets.CIFAR10(folder, download=True)
        elif not (folder / "train").is_dir():
            _download_imagenette(folder)
    except (OSError, RuntimeError) as error:  # no connection, a wrong hash, a full disk
        raise UserError(
            f"download={name} into source={folder} failed: {error}; try again, or fetch it by hand"
        ) from error


def _download_imagenette(folder: Path) -> None:
    """With the names of its classes, which are WordNet ids, in classes.tsv."""
    from torchvision import datasets

    found = datasets.Imagenette(folder, download=True)
    lines = [
        f"{wordnet_id}\t{', '.join(words)}\n"
        for wordnet_id, words in zip(found.wnids, found.classes, strict=True)
    ]
    (folder / "classes.tsv").write_text("".join(lines))
    for split in ("train", "val"):
        shutil.move(folder / "imagenette2" / split, folder / split)


def _log_summary(store: Store) -> None:
    counts = {name: len(split) for name, split in store.splits.items()}
    log.info(
        "%s: %s of %d×%d, %d classes",
        store.folder,
        _format_counts(counts),
        store.size,
        store.size,
        len(store.classes),
    )
    bad = (store.folder / "bad.tsv").read_text().splitlines()
    if bad:
        log.info("%d images were left out, see %s", len(bad), store.folder / "bad.tsv")
    if len(store.classes) == 1000 and all(map(WORDNET_ID.fullmatch, store.classes)):
        if counts == ILSVRC_2012:
            log.info("this is the complete ILSVRC-2012")
        else:
            expected = _format_counts(ILSVRC_2012)
            log.warning("this is not the complete ILSVRC-2012, which has %s", expected)


def _format_counts(counts: dict[str, int]) -> str:
    return " and ".join(f"{count:,} {name} images" for name, count in counts.items())
