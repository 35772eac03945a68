"""Where pictures come from: class folders or Hugging Face parquet, as (split, bytes, label, name)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
VAL_NAMES = ("val", "validation", "valid", "test")


class Encoded(NamedTuple):
    split: str  # train or val
    data: bytes
    label: int
    name: str


class Source(Protocol):
    classes: list[str]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Encoded]: ...


def open_source(path: str | Path) -> Source:
    """The source at `path`, recognised by what it holds. Raises FileNotFoundError or ValueError."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"source={path} is no folder")
    if any(folder.glob("*.parquet")):
        return Parquet(folder)
    if (folder / "train").is_dir():
        return ClassFolders(folder)
    raise ValueError(
        f"source={path} holds neither train-*.parquet and validation-*.parquet (or test-*) nor train/<class>/ and "
        "val/<class>/"
    )


class ClassFolders:
    """`train/<class>/*.jpg` and `val/<class>/*.jpg`, classes sorted by name. Raises ValueError that lists empty class
    folders and classes that only one split has."""

    def __init__(self, root: Path):
        self.folders = {"train": root / "train", "val": _val_folder(root)}
        found = {split: sorted(p.name for p in f.iterdir() if p.is_dir()) for split, f in self.folders.items()}
        problems = [f"{name} is in one split only" for name in sorted(set(found["train"]) ^ set(found["val"]))]
        self.classes = found["train"]
        self.files = [
            (split, label, file)
            for split, folder in self.folders.items()
            for label, name in enumerate(self.classes)
            if (folder / name).is_dir()
            for file in self._pictures(folder / name, problems)
        ]
        if problems or not self.classes:
            raise ValueError(f"source={root}: {'; '.join(problems) or 'train/ holds no class folder'}")

    @staticmethod
    def _pictures(folder: Path, problems: list[str]) -> list[Path]:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            problems.append(f"class folder {folder} has no picture")
        return files

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Encoded]:
        for split, label, file in self.files:
            yield Encoded(split, file.read_bytes(), label, str(file))


class Parquet:
    """`train-*.parquet` and `validation-*.parquet` or `test-*.parquet` with columns `image` or `img` (a struct with
    `bytes`) and an integer `label`; class names from the schema's `huggingface` metadata. Raises ValueError if a file
    lacks them or has other classes than the first."""

    def __init__(self, root: Path):
        self.files = {"train": sorted(root.glob("train-*.parquet"))}
        self.files["val"] = next((f for name in VAL_NAMES if (f := sorted(root.glob(f"{name}-*.parquet")))), [])
        if missing := [split for split, files in self.files.items() if not files]:
            raise ValueError(f"source={root} has no parquet file for {' and '.join(missing)}")
        files = [_open_parquet(file) for split in self.files.values() for file in split]
        first = files[0]
        names = first.schema_arrow.names
        self.image = next((name for name in ("image", "img") if name in names), None)
        self.label = next((name for name in ("label", "fine_label", "labels") if name in names), None)
        if self.image is None or self.label is None:
            raise ValueError(f"{self.files['train'][0]} needs columns image and label, but has {', '.join(names)}")
        for path, file in zip((path for split in self.files.values() for path in split), files, strict=True):
            if not {self.image, self.label} <= set(file.schema_arrow.names):
                raise ValueError(f"{path} needs columns {self.image} and {self.label}, as the first file has")
            if self._named_classes(file) != self._named_classes(first):
                raise ValueError(f"{path} has other class names than {self.files['train'][0].name}")
        self.classes = self._named_classes(first) or self._numbered_classes()
        self.rows = sum(file.metadata.num_rows for file in files)

    def _named_classes(self, file: pq.ParquetFile) -> list[str] | None:
        metadata = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        return metadata.get("info", {}).get("features", {}).get(self.label, {}).get("names")

    def _numbered_classes(self) -> list[str]:
        labels = (pq.read_table(file, columns=[self.label])[self.label] for file in self.files["train"])
        return [str(label) for label in range(max(pc.max(column).as_py() or 0 for column in labels) + 1)]

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[Encoded]:
        for split, files in self.files.items():
            for file in files:
                row = 0
                for batch in pq.ParquetFile(file).iter_batches(256, columns=[self.image, self.label]):
                    for image, label in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                        if label is None or not 0 <= label < len(self.classes):
                            raise ValueError(f"{file} row {row}: label {label} lies outside 0..{len(self.classes) - 1}")
                        yield Encoded(split, (image or {}).get("bytes") or b"", label, f"{file.name} row {row}")
                        row += 1


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid:
        raise ValueError(f"{file} is torn or no parquet file: fetch it again") from None


def _val_folder(root: Path) -> Path:
    for name in VAL_NAMES:
        if (root / name).is_dir():
            return root / name
    raise ValueError(f"source={root} has no folder to validate with: none of {', '.join(VAL_NAMES)}")
