"""Images in Hugging Face's parquet files."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alexnet.data.sources.folders import Encoded

VALIDATION = ("validation", "val", "valid", "test")
MOST = 100_000  # classes without names: a torn file may name any number as a label


class Parquet:
    """Hugging Face's `train-*.parquet` and `validation-*.parquet` or `test-*.parquet` with columns `image` or `img` (a
    struct with `bytes`) and an integer `label`; class names from the schema's `huggingface` metadata. Raises ValueError
    if a file lacks them, has other classes than the first, or a label lies outside them."""

    def __init__(self, root: Path):
        files = {"train": sorted(root.glob("train-*.parquet"))}
        files["val"] = next(
            (f for name in VALIDATION if (f := sorted(root.glob(f"{name}-*.parquet")))), []
        )
        if missing := [split for split, found in files.items() if not found]:
            raise ValueError(f"source={root} has no parquet file for {' and '.join(missing)}")
        with _named(files["train"][0]):
            first = pq.ParquetFile(files["train"][0])
        names = first.schema_arrow.names
        self.image = next((name for name in ("image", "img") if name in names), "")
        self.label = next((name for name in ("label", "fine_label", "labels") if name in names), "")
        if not self.image or not self.label:
            raise ValueError(
                f"{files['train'][0]} needs columns image and label, but has {', '.join(names)}"
            )
        self.groups: dict[str, list[tuple[Path, int, int]]] = {
            "train": [],
            "val": [],
        }  # file, row group, its rows
        labels: dict[str, list[np.ndarray]] = {"train": [], "val": []}
        for split, found in files.items():
            for path in found:
                with _named(path):
                    file = pq.ParquetFile(path)
                if not {self.image, self.label} <= set(file.schema_arrow.names):
                    raise ValueError(
                        f"{path} needs columns {self.image} and {self.label}, as the first file has"
                    )
                if self._named_classes(file) != self._named_classes(first):
                    raise ValueError(f"{path} has other class names than {files['train'][0].name}")
                labels[split].append(self._labels(path, file))
                if (
                    file.metadata.num_row_groups > len(labels[split][-1]) + 1
                ):  # an empty file may have one
                    raise ValueError(f"{path} is torn: it names more row groups than rows")
                rows = [
                    file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)
                ]
                if sum(rows) != len(labels[split][-1]):
                    raise ValueError(
                        f"{path} is torn: its row groups do not have the rows that it names"
                    )
                self.groups[split] += [(path, g, count) for g, count in enumerate(rows)]
        top = max(int(part.max(initial=0)) for parts in labels.values() for part in parts)
        self.classes = self._named_classes(first) or [
            str(label) for label in range(min(top + 1, MOST))
        ]
        for split, found in files.items():
            for path, part in zip(found, labels[split], strict=True):
                if len(wrong := np.flatnonzero((part < 0) | (part >= len(self.classes)))):
                    raise ValueError(
                        f"{path} row {wrong[0]}: label {part[wrong[0]]} lies outside 0..{len(self.classes) - 1}"
                    )
        self.counts = {
            split: sum(count for *_, count in groups) for split, groups in self.groups.items()
        }
        digest = hashlib.sha256()
        for split in files:
            digest.update(str([(p.name, p.stat().st_size) for p in files[split]]).encode())
            digest.update(np.concatenate(labels[split]).tobytes())
        self.fingerprint = digest.hexdigest()

    def _labels(self, path: Path, file: pq.ParquetFile) -> np.ndarray:
        with _named(path):
            column = file.read([self.label])[self.label]
        if not pa.types.is_integer(column.type):
            raise ValueError(
                f"{path}: column {self.label} holds {column.type} and not whole numbers"
            )
        return pc.fill_null(column.cast(pa.int64()), -1).to_numpy()

    def _named_classes(self, file: pq.ParquetFile) -> list[str] | None:
        metadata = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        return metadata.get("info", {}).get("features", {}).get(self.label, {}).get("names")

    def read(self, split: str, rows: range) -> Iterator[Encoded]:
        ends = list(accumulate(count for *_, count in self.groups[split]))
        row = rows.start
        while row < rows.stop:
            place = bisect_right(ends, row)
            path, group, count = self.groups[split][place]
            begin = ends[place] - count
            stop = min(rows.stop, ends[place])
            with _named(path), pq.ParquetFile(path) as file:
                table = file.read_row_group(group, [self.image, self.label]).slice(
                    row - begin, stop - row
                )
            images, labels = table[self.image].to_pylist(), table[self.label].to_pylist()
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield Encoded(
                    (image or {}).get("bytes") or b"",
                    label,
                    f"{path.name} row group {group} row {row - begin + i}",
                )
            row = stop


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Says which file is torn."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        what = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} is torn or no parquet file, fetch it again: {what}") from None
