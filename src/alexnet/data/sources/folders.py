"""Images in class folders, in tars, and in ILSVRC's tar of class tars, read where they are.

A split is a folder or a tar. Its files are listed as if every tar in it were a folder of its name:
`a.JPEG` in `n01440764.tar` is `n01440764/a.JPEG`, whether that tar lies in a folder or in another
tar. The first folder of this name is the image's class. For each image the list has the file that
holds it and the place of its bytes in there. So nothing is unpacked, and any thread can read any
image.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from alexnet.data.sources.labels import read_validation_labels
from alexnet.data.sources.source import EncodedImage
from alexnet.errors import UserError, join_problems

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# Where a split may be, in a source's folder; the first that exists is taken.
PLACES = {
    "train": ("train", "ILSVRC2012_img_train.tar", "train.tar"),
    "val": ("val", "validation", "valid", "test", "ILSVRC2012_img_val.tar", "val.tar"),
}


class ImageFile(NamedTuple):
    """`size` bytes of the file `path` from `offset`."""

    name: str  # its path within the split, class first
    path: str
    offset: int
    size: int

    @property
    def basename(self) -> str:
        return self.name.rsplit("/", 1)[-1]

    @property
    def class_name(self) -> str:
        """The first folder of its name; empty if it is in none."""
        folder, slash, _ = self.name.partition("/")
        return folder if slash else ""


class SplitFiles(NamedTuple):
    """What a split's folder or tar holds."""

    place: Path
    images: list[ImageFile]
    classes: set[str]  # also those whose folder is empty


class LabeledFile(NamedTuple):
    file: ImageFile
    label: int  # number of its class


class FolderSource:
    """Images in class folders or in tars, in the order of their class, then of their file name.

    Classes are sorted by name, ImageNet's by WordNet id. A validation set without class folders has
    its classes in a list.
    """

    def __init__(self, root: Path, labels: str | None = None) -> None:
        places = _find_places(root)
        train = _list_split(places["train"])
        val = _list_split(places["val"])
        if not train.classes or "" in train.classes:
            raise UserError(
                f"{train.place} must hold the images of each class in a folder or tar of its own"
            )
        self.classes = sorted(train.classes)
        self.images = {"train": self._label_by_folder(train)}
        unshared: set[str] = set()
        # Tiny ImageNet's images are in val/images, which is a folder but no class.
        if val.images and val.classes.isdisjoint(train.classes):
            self.images["val"] = self._label_by_list(val, root, labels)
        else:
            self.images["val"] = self._label_by_folder(val)
            unshared = train.classes ^ val.classes
        problems = list(self._find_problems(unshared, places))
        if problems:
            raise UserError(f"source={root}: {join_problems(problems)}")
        self.counts = {split: len(images) for split, images in self.images.items()}
        self.fingerprint = self._compute_fingerprint()

    def read(self, split: str, rows: range) -> Iterator[EncodedImage]:
        for file, label in self.images[split][rows.start : rows.stop]:
            yield EncodedImage(_read_bytes(file), label, f"{split}/{file.name}")

    def _label_by_folder(self, split: SplitFiles) -> list[LabeledFile]:
        numbers = {name: number for number, name in enumerate(self.classes)}
        labeled = []
        for file in split.images:
            if file.class_name in numbers:  # any other class is a problem that is reported later
                labeled.append(LabeledFile(file, numbers[file.class_name]))
        return _sort_images(labeled)

    def _label_by_list(
        self, split: SplitFiles, root: Path, labels: str | None
    ) -> list[LabeledFile]:
        names = [file.basename for file in split.images]
        numbers = read_validation_labels(
            names, self.classes, root=root, place=split.place, given=labels
        )
        return _sort_images(list(map(LabeledFile, split.images, numbers)))

    def _find_problems(self, unshared: set[str], places: dict[str, Path]) -> Iterator[str]:
        if "" in unshared:
            yield f"{places['val']} has images outside of its class folders"
        for name in sorted(unshared - {""}):
            yield f"class {name} is in one split only"
        for split, place in places.items():
            used = {image.label for image in self.images[split]}
            for number, name in enumerate(self.classes):
                if number not in used:
                    yield f"class folder {place / name} has no image"

    def _compute_fingerprint(self) -> str:
        """Of names, sizes and classes, since reading a million images takes too long."""
        lines = []
        for file, label in chain.from_iterable(self.images.values()):
            lines.append(f"{file.basename} {file.size} {label}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _find_places(root: Path) -> dict[str, Path]:
    """The folder or tar of each split."""
    places: dict[str, Path] = {}
    missing = []
    for split, names in PLACES.items():
        candidates = [root / name for name in names if (root / name).exists()]
        if candidates:
            places[split] = candidates[0]
        else:
            missing.append(split)
    if missing:
        raise UserError(
            f"source={root} has nothing for {' and '.join(missing)}: "
            "it needs train-*.parquet and validation-*.parquet (or test-*), "
            f"or one of {', '.join(PLACES['train'])} and one of {', '.join(PLACES['val'])}"
        )
    return places


def _list_split(place: Path) -> SplitFiles:
    try:
        files = _list_folder(place) if place.is_dir() else _list_tar_file(str(place), folder="")
        images = [file for file in files if _is_image(file.name)]
        classes = {file.class_name for file in images}
        if place.is_dir():
            classes |= {entry.name for entry in place.iterdir() if entry.is_dir()}
    except OSError as error:
        raise UserError(f"{error.filename or place} can't be read: {error.strerror}") from error
    return SplitFiles(place, images, classes)


def _list_folder(place: Path) -> Iterator[ImageFile]:
    """All files below a folder, those in tars included, in no particular order."""
    for folder, _, names in os.walk(place, followlinks=True):
        parents = Path(folder).relative_to(place).parts
        prefix = "/".join([*parents, ""])
        for name in names:
            # A string: a Path takes three times as long, and ImageNet has a million files.
            path = f"{folder}/{name}"
            if name.endswith(".tar"):
                yield from _list_tar_file(path, prefix + _name_folder(name))
            else:
                yield ImageFile(prefix + name, path, offset=0, size=os.path.getsize(path))


def _list_tar_file(path: str, folder: str) -> Iterator[ImageFile]:
    with open(path, "rb") as file:
        yield from _list_tar(file, path, start=0, size=os.path.getsize(path), folder=folder)


def _list_tar(
    content: IO[bytes], path: str, *, start: int, size: int, folder: str
) -> Iterator[ImageFile]:
    """All files of the tar `content`, whose `size` bytes lie at `start` of the file `path`."""
    try:
        # "r:" takes no compressed tar, in which an image could not be read by its offset.
        with tarfile.open(fileobj=content, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                name = folder + _strip_split(member.name)
                if member.offset_data + member.size > size:  # or a truncated tar would pass
                    raise tarfile.ReadError(f"{name} exceeds the end of the file")
                offset = start + member.offset_data
                inner = tar.extractfile(member) if name.endswith(".tar") else None
                if inner:
                    yield from _list_tar(
                        inner, path, start=offset, size=member.size, folder=_name_folder(name)
                    )
                else:
                    yield ImageFile(name, path, offset, member.size)
    except UserError:  # in a tar within this one
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        place = f"{path} ({folder})" if folder else path
        raise UserError(f"{place} is corrupt or not an uncompressed tar: {error}") from error


def _strip_split(name: str) -> str:
    """A member's name without `./`, `train/` and `val/`, which some tars have in front."""
    for prefix in ("./", "train/", "val/"):
        name = name.removeprefix(prefix)
    return name


def _name_folder(tar: str) -> str:
    """The folder whose files are those of a tar."""
    return tar.removesuffix(".tar") + "/"


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _sort_images(images: list[LabeledFile]) -> list[LabeledFile]:
    return sorted(images, key=lambda image: (image.label, image.file.basename))


def _read_bytes(file: ImageFile) -> bytes:
    try:
        with open(file.path, "rb", buffering=0) as opened:  # reads these bytes alone
            opened.seek(file.offset)
            return opened.read(file.size)
    except OSError as error:
        raise UserError(f"{file.path} can't be read: {error.strerror}") from error
