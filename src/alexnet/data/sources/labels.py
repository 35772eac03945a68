"""The classes of a validation set without class folders, from any of the lists that people have."""

import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from alexnet.errors import UserError, join_problems

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
# A plain list, Caffe's, Kaggle's, Tiny ImageNet's, ILSVRC's.
LISTS = ("val_labels.txt", "val.txt", "LOC_val_solution.csv", "val_annotations.txt", DEVKIT)
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def read_validation_labels(
    names: Sequence[str], classes: Sequence[str], *, root: Path, place: Path, given: str | None
) -> list[int]:
    """The class number of each file name.

    The list is `given`, or one of `LISTS` in the source `root` or its validation folder `place`.
    Its lines are `name class`, separated by blanks, tabs or commas, or `class` in the order of the
    sorted file names; a class is a name, or its number from 0. ILSVRC's devkit is such a list too.
    Raises UserError that names the list and what is wrong with it.
    """
    file = _find_list(root, place, given)
    rows = _read_devkit_rows(file) if file.name.endswith(".tar.gz") else _read_rows(file)
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(names):
            raise UserError(f"{file} has {len(rows)} lines for {len(names)} images of {place}")
        listed = {name: row[0] for name, row in zip(sorted(names), rows, strict=True)}
    else:
        listed = _index_rows(rows)
    return _number_classes(names, classes, listed, file)


def read_devkit_synsets(file: Path) -> np.ndarray:
    """The rows of the devkit's meta.mat, with fields ILSVRC2012_ID, WNID, words and more."""
    from scipy.io import loadmat  # takes 0.2 s to import, and few need it

    content = io.BytesIO(_read_devkit_member(file, "meta.mat"))
    return cast(np.ndarray, loadmat(content, squeeze_me=True)["synsets"])


def _find_list(root: Path, place: Path, given: str | None) -> Path:
    if given:
        if not Path(given).is_file():
            raise UserError(f"labels={given} is not a file")
        return Path(given)
    folders = [root, place] if place.is_dir() else [root]
    for name in LISTS:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    raise UserError(
        f"{place} holds images without classes: give labels=<file> with lines `name class`, "
        f"or put one of {', '.join(LISTS)} into {root}"
    )


def _read_rows(file: Path) -> list[list[str]]:
    """The fields of each line, without Kaggle's heading."""
    lines = file.read_text(errors="replace").splitlines()
    # Kaggle's and Tiny ImageNet's lines end with the boxes of objects, which are not used.
    rows = [line.replace(",", " ").split() for line in lines if line.strip()]
    return rows[1:] if rows and rows[0][0] == "ImageId" else rows


def _read_devkit_rows(file: Path) -> list[list[str]]:
    """One WordNet id for each image: the ground truth has numbers, which meta.mat explains."""
    synsets = read_devkit_synsets(file)
    # ILSVRC's own numbers are not in the order of the WordNet ids.
    wordnet = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    truth = _read_devkit_member(file, GROUND_TRUTH).decode()
    return [[wordnet[int(number)]] for number in truth.split()]


def _read_devkit_member(file: Path, name: str) -> bytes:
    try:
        with tarfile.open(file) as tar:
            for member in tar:
                if member.isfile() and Path(member.name).name == name:
                    return _read_member(tar, member)
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        raise UserError(f"{file} is corrupt or not ILSVRC's devkit: {error}") from error
    raise UserError(f"{file} is not ILSVRC's devkit: it has no {name}")


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None  # only folders and devices have none
    return content.read()


def _index_rows(rows: list[list[str]]) -> dict[str, str]:
    """The class by file name, with and without its suffix: Kaggle's list has names without."""
    listed: dict[str, str] = {}
    for row in rows:
        if len(row) > 1:
            name, label = row[:2]
            listed[name] = label
            listed[Path(name).stem] = label
    return listed


def _number_classes(
    names: Sequence[str], classes: Sequence[str], listed: dict[str, str], file: Path
) -> list[int]:
    numbers = {name: number for number, name in enumerate(classes)}
    for number in range(len(classes)):
        numbers[str(number)] = number  # Caffe's lists have numbers
    labels: list[int] = []
    problems: list[str] = []
    unknown: set[str] = set()
    for name in names:
        label = listed.get(name) or listed.get(Path(name).stem)
        if label is None:
            problems.append(f"{name} has no line")
        elif label not in numbers:
            unknown.add(label)
        else:
            labels.append(numbers[label])
    problems += [f"class {label} is not in the training set" for label in sorted(unknown)]
    if problems:
        raise UserError(f"{file}: {join_problems(problems)}")
    return labels
