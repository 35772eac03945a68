"""Mutated images, parquet files and tars: `python tests/fuzz.py 100000 [seed]`.

An image must give the pixels that Pillow gives, or a reason. A source must be read, or be refused
with a UserError. A crash, a hang or any other exception is a bug. Input i depends on the seed and i
alone.
"""

import faulthandler
import io
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from image_sets import CLASSES, make_odd_images, make_tar
from numpy.random import Generator
from PIL import Image

from alexnet.data.decode import UnreadableImageError, decode
from alexnet.data.sources import open_source
from alexnet.errors import UserError

HANG = 10  # seconds
IMAGES = list(make_odd_images().values())
Files = dict[str, bytes]


def mutate(rng: Generator, data: bytes) -> bytes:
    """Some bytes changed, a piece cut out or repeated, or the end cut off; one to three times."""
    mutated = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not mutated:
            break
        start, stop = sorted(rng.integers(0, len(mutated) + 1, 2).tolist())
        match rng.integers(0, 5):
            case 0:
                for place in rng.integers(0, len(mutated), rng.integers(1, 9)):
                    mutated[place] = rng.integers(0, 256)
            case 1:
                del mutated[start : min(stop, start + 64)]
            case 2:
                mutated[stop:stop] = mutated[start : start + 64]
            case 3:
                del mutated[stop:]
            case 4:  # in the header
                place = rng.integers(0, min(len(mutated), 200))
                mutated[place] = rng.integers(0, 256)
    return bytes(mutated)


def check_image(rng: Generator) -> str:
    """What became of a mutated image."""
    data = mutate(rng, IMAGES[rng.integers(len(IMAGES))])
    try:
        actual = decode(data, 64, "bicubic", exif=False)
    except UnreadableImageError as error:
        check_reason(error)
        return "image refused"
    assert actual.shape == (64, 64, 3)
    assert actual.dtype == np.uint8
    try:
        image = Image.open(io.BytesIO(data))
        if image.size != (64, 64) or image.mode.startswith("I"):
            return "image resized"
        expected = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's formats raise errors of their own
        return f"image that Pillow refuses: {type(error).__name__} {str(error)[:40]}"
    difference = np.abs(actual.astype(int) - expected).max()
    assert difference <= 2, f"{difference} from Pillow's pixels: {image.format} {image.mode}"
    return "image with Pillow's pixels"


def check_reason(error: UnreadableImageError) -> None:
    assert str(error), "no reason given"


def check_source(rng: Generator, files: Files) -> str:
    """What became of a source of which one file was mutated."""
    chosen = list(files)[rng.integers(len(files))]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for name, data in files.items():
            content = mutate(rng, data) if name == chosen else data
            (Path(folder) / name).write_bytes(content)
        try:
            read_source(folder)
        except UserError:
            return "source refused"
    return "source read"


def read_source(folder: str) -> None:
    source = open_source(folder)
    for split, count in source.counts.items():
        for image in source.read(split, range(count)):
            try:
                decode(image.data, 64, "bicubic", exif=False)
            except UnreadableImageError as error:
                check_reason(error)


def make_sources() -> list[Files]:
    """The files of ILSVRC's tars and of a parquet source, with one image of each class."""
    odd = make_odd_images()
    images = [odd["baseline"], odd["gray"], odd["PNG"]]
    class_tars = {}
    val = {}
    lines = ""
    for number, (name, image) in enumerate(zip(CLASSES, images, strict=True)):
        class_tars[f"{name}.tar"] = make_tar([(f"{name}_0.JPEG", image)])
        val[f"{number}.JPEG"] = image
        lines += f"{number}.JPEG {name}\n"
    tars = {
        "ILSVRC2012_img_train.tar": make_tar(class_tars.items()),
        "ILSVRC2012_img_val.tar": make_tar(val.items()),
        "val_labels.txt": lines.encode(),
    }
    structs = [{"bytes": image, "path": ""} for image in images]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": structs, "label": [0, 1, 2]}), buffer, row_group_size=2)
    content = buffer.getvalue()
    return [tars, {"train-0.parquet": content, "validation-0.parquet": content}]


def main(number: int, seed: int = 0) -> None:
    warnings.simplefilter("ignore")
    faulthandler.enable()
    sources = make_sources()
    counts: Counter[str] = Counter()
    slowest = 0.0
    for i in range(number):
        rng = np.random.default_rng([seed, i])
        faulthandler.dump_traceback_later(HANG, exit=True)
        start = time.monotonic()
        try:
            if i % 5:
                outcome = check_image(rng)
            else:  # fewer, since they take longer
                outcome = check_source(rng, sources[i // 5 % len(sources)])
            counts[outcome] += 1
        except BaseException:
            print(f"input {i} of seed {seed}")
            raise
        slowest = max(slowest, time.monotonic() - start)
    faulthandler.cancel_dump_traceback_later()
    print(f"{number} inputs, the slowest {slowest:.2f} s:")
    for outcome, count in counts.most_common():
        print(f"{count:8} {outcome}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
