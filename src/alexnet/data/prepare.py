"""Any source to a store: decode, shorter side to `size`, center crop (§2)."""

import logging
import re
import shutil
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import simplejpeg
from omegaconf import DictConfig

from alexnet.data.sources import Source, open_source
from alexnet.data.sources.class_names import readable_names
from alexnet.data.store.reader import Store
from alexnet.data.store.writer import Plan, PreparedImage, write_store

log = logging.getLogger(__name__)
ILSVRC = {"train": 1_281_167, "val": 50_000}
CHOICES = {
    "encoding": ("raw", "jpeg"),
    "resize": ("bicubic", "area"),
    "download": (None, "cifar10", "imagenette"),
}


def prepare(cfg: DictConfig) -> None:
    _check(cfg)
    if cfg.download:
        _download(cfg.download, cfg.source)
    options = {
        name: cfg[name] for name in ("size", "encoding", "quality", "resize", "exif", "max_bad")
    }
    store = prepare_store(cfg.source, cfg.folder, labels=cfg.labels, **options)
    if cfg.verify:
        store.verify()
        log.info("every shard has its hash")
    _report(store)


def prepare_store(
    path: str,
    folder: str,
    size: int,
    labels: str | None = None,
    encoding: str = "raw",
    quality: int = 90,
    resize: str = "bicubic",
    exif: bool = False,
    max_bad: int = 0,
) -> Store:
    """The store of the source `path` in `folder`, made unless it is there. `conf/prepare.yaml` explains the options.
    Raises what `open_source` and `write_store` do."""
    source = open_source(path, labels)
    how = {"size": size, "encoding": encoding, "resize": resize, "exif": exif}
    how |= {"quality": quality} if encoding == "jpeg" else {}
    made_with = {name: version(name) for name in ("simplejpeg", "pillow", "torch")}
    read = partial(_read, source, how)
    made_of: dict[str, Any] = {"pictures": source.counts, "sha256": source.fingerprint, **how}
    names = readable_names(source.classes, Path(path))
    return write_store(
        folder,
        Plan(
            size, source.classes, source.counts, read, made_of, made_with, encoding, max_bad, names
        ),
    )


def _read(source: Source, how: dict[str, Any], split: str, rows: range) -> Iterator[PreparedImage]:
    from alexnet.data.decode import decode  # imports torch, which takes seconds

    for item in source.read(split, rows):
        pixels = decode(item.data, how["size"], how["resize"], how["exif"])
        if isinstance(pixels, str):
            yield PreparedImage(b"", None, item.label, item.name, pixels)
        else:
            raw = how["encoding"] == "raw"
            data = (
                pixels.data
                if raw
                else simplejpeg.encode_jpeg(pixels, how["quality"], colorsubsampling="420")
            )
            yield PreparedImage(data, pixels, item.label, item.name)


def _check(cfg: DictConfig) -> None:
    problems = [
        f"{name}={cfg[name]} is not known; choose one of {', '.join(str(c or 'null') for c in choices)}"
        for name, choices in CHOICES.items()
        if cfg[name] not in choices
    ]
    problems += [f"size={cfg.size} must be at least 1 pixel"] if cfg.size < 1 else []
    problems += [f"quality={cfg.quality} must lie in 1..100"] if not 1 <= cfg.quality <= 100 else []
    if problems:
        raise ValueError("; ".join(problems))


def _download(name: str, folder: str) -> None:
    """torchvision's set into `folder`, in the form in which `open_source` knows it."""
    from torchvision import datasets

    Path(folder).mkdir(parents=True, exist_ok=True)
    if name == "cifar10":
        datasets.CIFAR10(folder, download=True)
    elif not (Path(folder) / "train").is_dir():
        found = datasets.Imagenette(folder, download=True)
        words = "".join(
            f"{i}\t{', '.join(words)}\n"
            for i, words in zip(found.wnids, found.classes, strict=True)
        )
        (Path(folder) / "classes.tsv").write_text(words)
        for split in ("train", "val"):
            shutil.move(Path(folder) / "imagenette2" / split, Path(folder) / split)


def _report(store: Store) -> None:
    counts = {name: len(split) for name, split in store.splits.items()}
    log.info(
        "%s: %s of %d×%d, %d classes",
        store.folder,
        _named(counts),
        store.size,
        store.size,
        len(store.classes),
    )
    if bad := (store.folder / "bad.tsv").read_text().splitlines():
        log.info("%d images were left out, see %s", len(bad), store.folder / "bad.tsv")
    if len(store.classes) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in store.classes):
        if counts == ILSVRC:
            log.info("this is ILSVRC-2012, whole")
        else:
            log.warning("ILSVRC-2012 has %s: this set is another, or not whole", _named(ILSVRC))


def _named(counts: dict[str, int]) -> str:
    return " and ".join(f"{count:,} {name} images" for name, count in counts.items())
