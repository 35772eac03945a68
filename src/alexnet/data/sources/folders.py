"""Images in class folders, in tars, and in ILSVRC's tar of class tars, read where they lie."""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet.data.sources.labels import validation_labels

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Encoded(NamedTuple):
    """A image's file, or its (height, width, 3) uint8 pixels; its class number; its name in messages."""

    data: bytes | np.ndarray
    label: int
    name: str


class Piece(NamedTuple):
    """A image's place: `size` bytes of `file` from `offset`; `name` is its path within the half, class first."""

    name: str
    file: str
    offset: int
    size: int

    @property
    def basename(self) -> str:
        return self.name.rsplit("/", 1)[-1]


class Files:
    """Images in class folders or in tars, ILSVRC's tar of class tars among them, read where they lie. A validation
    set without classes takes them from a list. Classes are sorted by name, ImageNet's by WordNet id."""

    def __init__(self, root: Path, halves: dict[str, Path], labels: str | None):
        pieces = {
            split: [p for p in _pieces(half) if _is_image(p.name)] for split, half in halves.items()
        }
        self.classes = sorted(
            {_top(piece) for piece in pieces["train"]} | _empty_classes(halves["train"])
        )
        self.items: dict[str, list[tuple[Piece, int]]] = {}
        problems = []
        if not self.classes or "" in self.classes:
            raise ValueError(
                f"{halves['train']} must hold the images of each class in a folder or tar of its own"
            )
        number = {name: i for i, name in enumerate(self.classes)}
        seen = {_top(piece) for piece in pieces["val"]} | _empty_classes(halves["val"])
        self.items["train"] = [(piece, number[_top(piece)]) for piece in pieces["train"]]
        if seen & set(self.classes) or not pieces["val"]:
            problems += [
                f"class {name} is in one split only" for name in sorted(seen ^ set(self.classes))
            ]
            self.items["val"] = [
                (piece, number[_top(piece)]) for piece in pieces["val"] if _top(piece) in number
            ]
        else:
            names = [piece.basename for piece in pieces["val"]]
            found = validation_labels(names, self.classes, root, halves["val"], labels)
            self.items["val"] = list(zip(pieces["val"], found, strict=True))
        for split, half in halves.items():
            self.items[split].sort(key=lambda item: (item[1], item[0].basename))
            with_images = {label for _, label in self.items[split]}
            problems += [
                f"class folder {half / c} has no image"
                for c, i in number.items()
                if i not in with_images
            ]
        if problems:
            shown = "; ".join(problems[:8]) + (
                f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            )
            raise ValueError(f"source={root}: {shown}")
        self.counts = {split: len(items) for split, items in self.items.items()}
        listing = "\n".join(
            f"{p.basename} {p.size} {i}" for items in self.items.values() for p, i in items
        )
        self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()

    def read(self, split: str, rows: range) -> Iterator[Encoded]:
        for piece, label in self.items[split][rows.start : rows.stop]:
            with open(piece.file, "rb", buffering=0) as file:
                file.seek(piece.offset)
                yield Encoded(file.read(piece.size), label, f"{split}/{piece.name}")


def _pieces(half: Path) -> list[Piece]:
    """All files of a folder or a tar, in no particular order."""
    if half.is_dir():
        return [
            piece
            for folder, _, names in os.walk(half, followlinks=True)
            for piece in _in_folder(half, folder, names)
        ]
    return _in_tar(str(half), 0, os.path.getsize(half), "")


def _in_folder(half: Path, folder: str, names: list[str]) -> list[Piece]:
    pieces = []  # of strings: Paths take three times as long, and ImageNet has a million files
    inside = "".join(f"{part}/" for part in Path(folder).relative_to(half).parts)
    for name in names:
        path = f"{folder}/{name}"
        if name.endswith(".tar"):
            pieces += _in_tar(
                path, 0, os.path.getsize(path), inside + name.removesuffix(".tar") + "/"
            )
        else:
            pieces.append(Piece(inside + name, path, 0, os.path.getsize(path)))
    return pieces


def _in_tar(file: str, start: int, size: int, prefix: str) -> list[Piece]:
    """The files of the tar that lies at `start` of `file`; a tar in it counts as a folder of its name."""
    pieces = []
    try:
        with (
            open(file, "rb") as raw,
            tarfile.open(fileobj=_Part(raw, start, size), mode="r:") as tar,
        ):  # type: ignore[call-overload]
            for member in tar:
                if not member.isfile():
                    continue
                name = member.name.removeprefix("./")
                for half in ("train/", "val/"):
                    name = name.removeprefix(half)
                offset = start + member.offset_data
                if offset + member.size > start + size:
                    raise tarfile.ReadError(f"{name} ends behind the file's end")
                if name.endswith(".tar"):
                    pieces += _in_tar(
                        file, offset, member.size, prefix + name.removesuffix(".tar") + "/"
                    )
                else:
                    pieces.append(Piece(prefix + name, file, offset, member.size))
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{file}{' (' + prefix + ')' if prefix else ''} is torn or no plain tar: {error}"
        ) from None
    return pieces


class _Part:
    """Bytes start … start + size of an open file, as a file."""

    def __init__(self, file: Any, start: int, size: int):
        self.file, self.start, self.size, self.place = file, start, size, 0

    def seek(self, place: int, whence: int = 0) -> int:
        self.place = place + {0: 0, 1: self.place, 2: self.size}[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, count: int = -1) -> bytes:
        left = max(self.size - self.place, 0)
        self.file.seek(self.start + self.place)
        data = self.file.read(left if count < 0 else min(count, left))
        self.place += len(data)
        return data


def _top(piece: Piece) -> str:
    """The first folder of a piece's name; nothing for a piece that lies in none."""
    return piece.name.split("/")[0] if "/" in piece.name else ""


def _empty_classes(half: Path) -> set[str]:
    return {p.name for p in half.iterdir() if p.is_dir()} if half.is_dir() else set()


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES
