"""Mutated images, parquet files and tars: `python tests/fuzz.py 100000 [seed]`. Every input must give pixels that
Pillow gives too, or a reason; never a crash, a hang or another exception."""

import faulthandler
import io
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from test_sources import CLASSES, ZOO, tar_of

from alexnet.data.decode import decode
from alexnet.data.sources import open_source

HANG = 10  # seconds


def mutated(rng: np.random.Generator, data: bytes) -> bytes:
    """A few bytes changed, a piece cut out, repeated or moved, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not out:
            break
        a, b = sorted(rng.integers(0, len(out) + 1, 2).tolist())
        match rng.integers(0, 5):
            case 0:
                for place in rng.integers(0, len(out), rng.integers(1, 9)):
                    out[place] = rng.integers(0, 256)
            case 1:
                del out[a : min(b, a + 64)]
            case 2:
                out[b:b] = out[a : a + 64]
            case 3:
                del out[b:]
            case 4:
                head = int(rng.integers(0, min(len(out), 200)))
                out[head] = rng.integers(0, 256)
    return bytes(out)


def image(rng: np.random.Generator, counts: Counter) -> None:
    data = mutated(rng, list(ZOO.values())[rng.integers(len(ZOO))])
    ours = decode(data, 64, "bicubic", exif=False)
    if isinstance(ours, str):
        assert ours, "no reason given"
        counts["image refused"] += 1
        return
    assert ours.shape == (64, 64, 3) and ours.dtype == np.uint8
    try:
        theirs = Image.open(io.BytesIO(data))
        if theirs.size != (64, 64) or theirs.mode.startswith("I"):
            counts["image resized"] += 1
            return
        expected = np.asarray(theirs.convert("RGB"))
    except Exception as error:
        counts["image that Pillow refuses"] += 1
        counts[f"  {type(error).__name__} {str(error)[:40]}"] += 1
        return
    difference = np.abs(ours.astype(int) - expected).max()
    assert difference <= 2, f"unlike Pillow's by {difference}: {theirs.format} {theirs.mode}"
    counts["image as Pillow's"] += 1


def source(rng: np.random.Generator, files: dict[str, bytes], counts: Counter) -> None:
    """One of a source's files mutated."""
    chosen = list(files)[rng.integers(len(files))]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(mutated(rng, data) if name == chosen else data)
        try:
            opened = open_source(folder)
            for split, count in opened.counts.items():
                for item in opened.read(split, range(count)):
                    decode(item.data, 64, "bicubic", exif=False)
            counts["source read"] += 1
        except (ValueError, FileNotFoundError):
            counts["source refused"] += 1


def seeds() -> list[dict[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    jpegs = [ZOO["baseline"], ZOO["gray"], ZOO["PNG"]]
    tars = {
        "ILSVRC2012_img_train.tar": tar_of(
            {f"{c}.tar": tar_of({f"{c}_0.JPEG": j}) for c, j in zip(CLASSES, jpegs, strict=True)}
        ),
        "ILSVRC2012_img_val.tar": tar_of({f"{i}.JPEG": j for i, j in enumerate(jpegs)}),
        "val_labels.txt": "".join(f"{i}.JPEG {c}\n" for i, c in enumerate(CLASSES)).encode(),
    }
    buffer = io.BytesIO()
    table = pa.table({"image": [{"bytes": j, "path": ""} for j in jpegs], "label": [0, 1, 2]})
    pq.write_table(table, buffer, row_group_size=2)
    return [tars, {"train-0.parquet": buffer.getvalue(), "validation-0.parquet": buffer.getvalue()}]


def main(number: int, seed: int = 0) -> None:
    warnings.simplefilter("ignore")
    faulthandler.enable()
    rng, counts, sources, slowest = np.random.default_rng(seed), Counter(), seeds(), 0.0
    for i in range(number):
        faulthandler.dump_traceback_later(HANG, exit=True)
        begun = time.monotonic()
        try:
            if i % 5:
                image(rng, counts)
            else:
                source(rng, sources[i // 5 % 2], counts)
        except BaseException:
            print(f"input {i} of seed {seed}")
            raise
        slowest = max(slowest, time.monotonic() - begun)
    faulthandler.cancel_dump_traceback_later()
    print(f"{number} inputs, the slowest {slowest:.2f} s:", dict(counts))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
