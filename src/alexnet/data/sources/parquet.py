"""Images in Hugging Face's parquet files.

A file consists of row groups, each of which can be read alone. The constructor reads the labels of
all rows and where each row group lies in its split; `read` then reads the groups that a range of
rows touches. Files may be corrupt, and what they say of themselves wrong, so all of it is checked.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alexnet.data.sources.source import EncodedImage
from alexnet.errors import UserError, join_problems

# A split consists of the files `<name>-*.parquet` of the first name that has any.
FILE_NAMES = {"train": ("train",), "val": ("validation", "val", "valid", "test")}
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")
MAX_UNNAMED_CLASSES = 100_000  # a corrupt file may have any number as a label


class Layout(NamedTuple):
    """What all files of a source have in common."""

    image: str  # name of the column
    label: str  # name of the column
    classes: list[str] | None  # None: they have no names, and are numbers


class FileContent(NamedTuple):
    """What is known of a file before its images are read."""

    path: Path
    labels: NDArray[np.int64]  # of all its rows
    group_rows: list[int]  # rows of each row group


class RowGroup(NamedTuple):
    """Rows `start` to `stop` of a split."""

    path: Path
    number: int  # in its file
    start: int
    stop: int


class ParquetSource:
    """Hugging Face's `train-*.parquet` and `validation-*.parquet` or `test-*.parquet`.

    The column `image` or `img` is a struct with `bytes`, and `label` a whole number; class names
    are in the schema's `huggingface` metadata. Raises UserError if a file lacks a column, has other
    classes than the first file, or a label that is not one of them.
    """

    def __init__(self, root: Path) -> None:
        paths = _find_files(root)
        first = paths["train"][0]
        self.layout = _read_layout(first)
        files: dict[str, list[FileContent]] = {}
        for split in paths:
            files[split] = [_read_content(path, self.layout, first) for path in paths[split]]
        self.classes = self.layout.classes or _number_classes(files)
        _check_labels(files, len(self.classes))
        self.groups: dict[str, list[RowGroup]] = {}
        self.counts: dict[str, int] = {}
        for split in files:
            self.groups[split] = _list_groups(files[split])
            self.counts[split] = sum(len(file.labels) for file in files[split])
        self.fingerprint = _compute_fingerprint(files)

    def read(self, split: str, rows: range) -> Iterator[EncodedImage]:
        groups = self.groups[split]
        # The groups before `first` end before the first of the rows.
        first = bisect_right(groups, rows.start, key=lambda group: group.stop)
        for group in groups[first:]:
            if group.start >= rows.stop:
                break
            start = max(rows.start, group.start)
            stop = min(rows.stop, group.stop)
            yield from self._read_group(group, range(start - group.start, stop - group.start))

    def _read_group(self, group: RowGroup, rows: range) -> Iterator[EncodedImage]:
        """The images of these rows, counted from the group's first."""
        with _open_file(group.path) as file:
            table = file.read_row_group(group.number, [self.layout.image, self.layout.label])
            table = table.slice(rows.start, len(rows))
            # Without the struct's `path`, which nobody needs.
            images = pc.struct_field(table[self.layout.image], "bytes").to_pylist()
            labels = table[self.layout.label].to_pylist()
        for row, image, label in zip(rows, images, labels, strict=True):
            name = f"{group.path.name} row group {group.number} row {row}"
            yield EncodedImage(image or b"", label, name)


def _find_files(root: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for split, names in FILE_NAMES.items():
        for name in names:
            paths = sorted(root.glob(f"{name}-*.parquet"))
            if paths and split not in found:
                found[split] = paths
    missing = [split for split in FILE_NAMES if split not in found]
    if missing:
        raise UserError(
            f"source={root} has no parquet file for {' and '.join(missing)}: "
            "it needs train-*.parquet and validation-*.parquet (or test-*)"
        )
    return found


@contextmanager
def _open_file(path: Path) -> Iterator[pq.ParquetFile]:
    """Errors in the file's content are those of the user, and name it."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, KeyError, UnicodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is corrupt or not a parquet file, fetch it again: {reason}"
        ) from error


def _read_layout(path: Path) -> Layout:
    """The layout of the first file, which all others must have."""
    with _open_file(path) as file:
        schema = file.schema_arrow
    image = _find_column(schema, IMAGE_COLUMNS)
    label = _find_column(schema, LABEL_COLUMNS)
    if image is None or label is None:
        raise UserError(f"{path} needs columns image and label, but has {', '.join(schema.names)}")
    return Layout(image, label, _read_class_names(path, schema, label))


def _find_column(schema: pa.Schema, names: tuple[str, ...]) -> str | None:
    """The first of these names that the schema has."""
    for name in names:
        if name in schema.names:
            return name
    return None


def _read_class_names(path: Path, schema: pa.Schema, label: str) -> list[str] | None:
    """The names that the schema's metadata has for the label, if any."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is corrupt: its huggingface metadata are not JSON") from error
    try:
        names = metadata["info"]["features"][label]["names"]
    except (KeyError, TypeError):
        return None
    return list(map(str, names)) if isinstance(names, list) else None


def _read_content(path: Path, layout: Layout, first: Path) -> FileContent:
    with _open_file(path) as file:
        _check_layout(path, file.schema_arrow, layout, first)
        column = file.read([layout.label])[layout.label].cast(pa.int64())
        # A missing label becomes -1, which is reported as being no class.
        labels: NDArray[np.int64] = pc.fill_null(column, -1).to_numpy()
        group_count = file.metadata.num_row_groups
        if group_count > len(labels) + 1:  # an empty file may have one
            raise UserError(f"{path} is corrupt: it has more row groups than rows")
        group_rows = [file.metadata.row_group(group).num_rows for group in range(group_count)]
    if sum(group_rows) != len(labels):
        raise UserError(f"{path} is corrupt: its row groups do not have as many rows as it has")
    return FileContent(path, labels, group_rows)


def _check_layout(path: Path, schema: pa.Schema, layout: Layout, first: Path) -> None:
    if layout.image not in schema.names or layout.label not in schema.names:
        raise UserError(
            f"{path} needs columns {layout.image} and {layout.label}, as {first.name} has"
        )
    if _read_class_names(path, schema, layout.label) != layout.classes:
        raise UserError(f"{path} has other class names than {first.name}")
    image = schema.field(layout.image).type
    if not pa.types.is_struct(image) or not _has_bytes(image):
        raise UserError(f"{path}: column {layout.image} has type {image} and not struct<bytes>")
    label = schema.field(layout.label).type
    if not pa.types.is_integer(label):
        raise UserError(f"{path}: column {layout.label} has type {label} and not whole numbers")


def _has_bytes(struct: pa.StructType) -> bool:
    index = struct.get_field_index("bytes")
    return index >= 0 and struct.field(index).type in (pa.binary(), pa.large_binary())


def _number_classes(files: dict[str, list[FileContent]]) -> list[str]:
    """The numbers up to the greatest label, for classes without names."""
    greatest = 0
    for file in [*files["train"], *files["val"]]:
        greatest = max(greatest, int(file.labels.max(initial=0)))
    return list(map(str, range(min(greatest + 1, MAX_UNNAMED_CLASSES))))


def _check_labels(files: dict[str, list[FileContent]], classes: int) -> None:
    problems = []
    for file in [*files["train"], *files["val"]]:
        wrong = np.flatnonzero((file.labels < 0) | (file.labels >= classes))
        if len(wrong):
            row = wrong[0]
            label = file.labels[row]
            problems.append(f"{file.path} row {row}: label {label} lies outside 0..{classes - 1}")
    if problems:
        raise UserError(join_problems(problems))


def _list_groups(files: list[FileContent]) -> list[RowGroup]:
    groups = []
    start = 0
    for file in files:
        for number, rows in enumerate(file.group_rows):
            groups.append(RowGroup(file.path, number, start, start + rows))
            start += rows
    return groups


def _compute_fingerprint(files: dict[str, list[FileContent]]) -> str:
    """Of the files' names and sizes and of all labels, since reading all images takes too long."""
    digest = hashlib.sha256()
    for contents in files.values():
        sizes = [(file.path.name, file.path.stat().st_size) for file in contents]
        digest.update(str(sizes).encode())
        for file in contents:
            digest.update(file.labels.tobytes())
    return digest.hexdigest()
