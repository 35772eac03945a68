"""The classes of a flat validation set, from any of the lists that people have."""

import io
import tarfile
from pathlib import Path

import numpy as np

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LISTS = ("val_labels.txt", "val.txt", "LOC_val_solution.csv", "val_annotations.txt", DEVKIT)
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def validation_labels(
    names: list[str], classes: list[str], root: Path, half: Path, given: str | None
) -> list[int]:
    """The class number of each file name.

    The list is `given`, or one of `LISTS` in the source or its validation folder: lines `name class`, separated by
    blanks, tabs or commas, or lines `class` in the order of the sorted names; a class by name or number from 0. Or
    ILSVRC's devkit. Raises ValueError or FileNotFoundError that names the list and what is wrong with it.
    """
    folders = [root, half] if half.is_dir() else [root]
    found = (
        Path(given)
        if given
        else next((f / n for n in LISTS for f in folders if (f / n).is_file()), None)
    )
    if found is None:
        raise ValueError(
            f"{half} holds images without classes: give labels=<file>, lines `name class`, or put one of "
            f"{', '.join(LISTS)} into {root}"
        )
    if not found.is_file():
        raise FileNotFoundError(f"labels={found} is no file")
    rows = _devkit(found) if found.name.endswith(".tar.gz") else _rows(found.read_text())
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(names):
            raise ValueError(f"{found} has {len(rows)} lines for {len(names)} images of {half}")
        by_name = dict(zip(sorted(names), (row[0] for row in rows), strict=True))
    else:
        by_name = {row[0]: row[1] for row in rows if len(row) > 1}
        by_name |= {Path(name).stem: label for name, label in by_name.items()}
    number = {name: i for i, name in enumerate(classes)} | {str(i): i for i in range(len(classes))}
    labels = [by_name.get(name) or by_name.get(Path(name).stem) for name in names]
    problems = [
        f"{name} has no line" for name, label in zip(names, labels, strict=True) if label is None
    ]
    problems += [
        f"class {label} is not in the training set"
        for label in sorted({x for x in labels if x} - set(number))
    ]
    if problems:
        raise ValueError(f"{found}: {'; '.join(problems[:3])} ({len(problems)} problems)")
    return [number[str(label)] for label in labels]


def _rows(text: str) -> list[list[str]]:
    """Fields of each line, without Kaggle's heading."""
    rows = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
    return rows[1:] if rows and rows[0][0] == "ImageId" else rows


def _devkit(file: Path) -> list[list[str]]:
    """One WordNet id for each image: the devkit's ground truth are numbers of its own, explained in meta.mat."""
    wordnet = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in devkit_synsets(file)}
    return [[wordnet[int(line)]] for line in _devkit_file(file, TRUTH).decode().split()]


def devkit_synsets(file: Path) -> np.ndarray:
    """The rows of the devkit's meta.mat: ILSVRC2012_ID, WNID, words, …. Raises ValueError without scipy."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(
            f"{file} needs scipy to be read: pip install scipy, or give labels=<file>"
        ) from None
    return loadmat(io.BytesIO(_devkit_file(file, "meta.mat")), squeeze_me=True)["synsets"]


def _devkit_file(file: Path, name: str) -> bytes:
    try:
        with tarfile.open(file) as tar:
            members = {Path(m.name).name: m for m in tar if m.isfile()}
            return tar.extractfile(members[name]).read()  # type: ignore[union-attr]
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise ValueError(f"{file} is torn or not ILSVRC's devkit: {error}") from None
