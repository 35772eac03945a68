"""Image sets for tests: three classes in every layout that sources read, and odd image files.

`write_class_folders` draws the images; each other `write_…(folders, target)` writes the same images
into the empty folder `target` in another layout.
"""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

WORDS = {"n01440764": "tench", "n01443537": "goldfish", "n01484850": "great white shark"}
CLASSES = list(WORDS)
# Kinds of `make_odd_images` that can't be decoded.
UNREADABLE = {
    "empty",
    "HTML",
    "zeros",
    "head of a JPEG",
    "half of a JPEG",
    "half of a PNG",
}


def write_class_folders(target: Path) -> None:
    """Four images of each class to train on and two to validate with, with ILSVRC's file names."""
    rng = np.random.default_rng(0)
    number = 0
    for split, count in (("train", 4), ("val", 2)):
        for wordnet_id in CLASSES:
            folder = target / split / wordnet_id
            folder.mkdir(parents=True)
            for i in range(count):
                number += 1
                name = f"{wordnet_id}_{i}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
                pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
                Image.fromarray(pixels).resize((64, 48)).save(folder / f"{name}.JPEG")


def list_images(folders: Path, split: str) -> list[Path]:
    """In the order of their class, then of their name."""
    return sorted((folders / split).glob("*/*"))


def get_class(file: Path) -> str:
    return file.parent.name


def make_tar(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of these names and contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_class_tar(folders: Path, wordnet_id: str, prefix: str = "") -> bytes:
    """The training images of one class."""
    files = sorted((folders / "train" / wordnet_id).iterdir())
    return make_tar((prefix + file.name, file.read_bytes()) for file in files)


def write_ilsvrc_tars(folders: Path, target: Path) -> None:
    """The training tar of class tars, and the flat validation tar with a list."""
    class_tars = [(f"{name}.tar", make_class_tar(folders, name)) for name in CLASSES]
    (target / "ILSVRC2012_img_train.tar").write_bytes(make_tar(class_tars))
    val = list_images(folders, "val")
    content = make_tar((file.name, file.read_bytes()) for file in reversed(val))
    (target / "ILSVRC2012_img_val.tar").write_bytes(content)
    write_list(target / "val_labels.txt", val, "{name} {wordnet_id}")


def write_extracted_tars(folders: Path, target: Path) -> None:
    """The training tar unpacked once, a folder of class tars; validation as a tar of folders."""
    (target / "train").mkdir()
    for name in CLASSES:
        (target / "train" / f"{name}.tar").write_bytes(make_class_tar(folders, name, prefix="./"))
    files = list_images(folders, "val")
    content = make_tar((f"val/{get_class(file)}/{file.name}", file.read_bytes()) for file in files)
    (target / "val.tar").write_bytes(content)


def write_list(file: Path, images: list[Path], line: str, heading: str = "") -> None:
    """One line for each image, with its `name`, `stem`, `wordnet_id` and class `number`."""
    text = heading
    for image in images:
        wordnet_id = get_class(image)
        number = CLASSES.index(wordnet_id)
        text += line.format(name=image.name, stem=image.stem, wordnet_id=wordnet_id, number=number)
        text += "\n"
    file.write_text(text)


def write_flat_val(folders: Path, target: Path) -> list[Path]:
    """Class folders to train on and a folder of images to validate with, without a list."""
    shutil.copytree(folders / "train", target / "train")
    (target / "val").mkdir()
    images = list_images(folders, "val")
    for image in images:
        shutil.copy(image, target / "val")
    return images


def write_caffe_list(folders: Path, target: Path) -> None:
    images = write_flat_val(folders, target)
    write_list(target / "val.txt", images, "{name} {number}")


def write_kaggle_list(folders: Path, target: Path) -> None:
    images = write_flat_val(folders, target)
    line = "{stem},{wordnet_id} 1 2 3 4 {wordnet_id} 5 6 7 8"  # with boxes of objects
    heading = "ImageId,PredictionString\n"
    write_list(target / "LOC_val_solution.csv", images, line, heading)


def write_ordered_list(folders: Path, target: Path) -> None:
    """Classes alone, in the order of the file names."""
    images = write_flat_val(folders, target)
    images.sort(key=lambda image: image.name)
    write_list(target / "val_labels.txt", images, "{wordnet_id}")


def write_tiny_imagenet(folders: Path, target: Path) -> None:
    """Tiny ImageNet's own layout."""
    for name in CLASSES:
        shutil.copytree(folders / "train" / name, target / "train" / name / "images")
    (target / "val" / "images").mkdir(parents=True)
    images = list_images(folders, "val")
    for image in images:
        shutil.copy(image, target / "val" / "images")
    line = "{name}\t{wordnet_id}\t0\t32\t44\t62"
    write_list(target / "val" / "val_annotations.txt", images, line)


def write_devkit(folders: Path, target: Path) -> None:
    """A flat validation set with the devkit's ground truth, which has numbers of its own."""
    images = write_flat_val(folders, target)
    images.sort(key=lambda image: image.name)
    devkit_numbers = {name: 3 - i for i, name in enumerate(CLASSES)}
    rows = [(devkit_numbers[name], name, f"{WORDS[name]}, {name}") for name in reversed(CLASSES)]
    fields = [("ILSVRC2012_ID", "i4"), ("WNID", "U9"), ("words", "O")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, fields)})
    truth = "".join(f"{devkit_numbers[get_class(image)]}\n" for image in images)
    contents = {
        "meta.mat": meta.getvalue(),
        "ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    with tarfile.open(target / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_parquet(folders: Path, target: Path) -> None:
    """Two files a split, with row groups of two."""
    for split, name in (("train", "train"), ("val", "validation")):
        table = make_parquet_table(list_images(folders, split))
        first = len(table) // 2 + 1
        write_parquet_file(table[:first], target / f"{name}-00000-of-00002.parquet")
        write_parquet_file(table[first:], target / f"{name}-00001-of-00002.parquet")


def make_parquet_table(images: list[Path]) -> pa.Table:
    """Hugging Face's columns and metadata."""
    features = {"label": {"names": CLASSES, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    columns = {
        "image": [{"bytes": image.read_bytes(), "path": image.name} for image in images],
        "label": [CLASSES.index(get_class(image)) for image in images],
    }
    return pa.table(columns).replace_schema_metadata(metadata)


def write_parquet_file(table: pa.Table, file: Path) -> None:
    pq.write_table(table, file, row_group_size=2)


LAYOUTS: list[Callable[[Path, Path], None]] = [
    write_ilsvrc_tars,
    write_extracted_tars,
    write_caffe_list,
    write_kaggle_list,
    write_ordered_list,
    write_tiny_imagenet,
    write_devkit,
    write_parquet,
]


def encode_image(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_odd_images() -> dict[str, bytes]:
    """Files of 64 × 64 pixels in all formats, modes and states in which people have images."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    smooth = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
    clear = smooth.copy()
    clear.putalpha(128)
    deep = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    jpeg = encode_image(smooth, "JPEG", quality=95)
    png = encode_image(smooth, "PNG")
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the tag of the orientation: a quarter turn
    return {
        "baseline": jpeg,
        "progressive": encode_image(smooth, "JPEG", progressive=True),
        "4:4:4": encode_image(smooth, "JPEG", subsampling=0),
        "4:2:2": encode_image(smooth, "JPEG", subsampling=1),
        "gray": encode_image(smooth.convert("L"), "JPEG"),
        "CMYK": encode_image(smooth.convert("CMYK"), "JPEG"),
        "EXIF rotation": encode_image(smooth, "JPEG", exif=rotated),
        "comment": encode_image(smooth, "JPEG", comment=b"x" * 1000),
        "ICC profile": encode_image(smooth, "JPEG", icc_profile=b"x" * 500),
        "quality 5": encode_image(smooth, "JPEG", quality=5),
        "trailing rubbish": jpeg + b"rubbish" * 100,
        "PNG": png,
        "PNG palette": encode_image(smooth.convert("P"), "PNG"),
        "PNG gray": encode_image(smooth.convert("L"), "PNG"),
        "PNG bilevel": encode_image(smooth.convert("1"), "PNG"),
        "PNG gray and alpha": encode_image(clear.convert("LA"), "PNG"),
        "PNG alpha": encode_image(clear, "PNG"),
        "PNG 16 bits": encode_image(deep, "PNG"),
        "GIF": encode_image(smooth, "GIF"),
        "WebP": encode_image(smooth, "WEBP", lossless=True),
        "WebP alpha": encode_image(clear, "WEBP", lossless=True),
        "one pixel": encode_image(smooth.resize((1, 1)), "PNG"),
        "a line": encode_image(smooth.resize((300, 1)), "PNG"),
        "BMP": encode_image(smooth, "BMP"),
        "TIFF": encode_image(smooth, "TIFF"),
        "empty": b"",
        "HTML": b"<html>not found</html>",
        "zeros": bytes(1000),
        "head of a JPEG": jpeg[:100],
        "half of a JPEG": jpeg[: len(jpeg) // 2],
        "half of a PNG": png[:2000],
    }
