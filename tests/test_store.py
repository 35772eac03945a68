"""Sources, prepare and the store they make."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, run, store_of
from PIL import Image

from alexnet.benchmarks.photographs import photographs
from alexnet.data.decode import decode
from alexnet.data.loader import BatchSampler
from alexnet.data.prepare import prepare_store
from alexnet.data.store.colors import color_products
from alexnet.data.store.reader import Store


def encoded(
    rng: np.random.Generator, mode: str, size: tuple[int, int], kind: str = "JPEG"
) -> bytes:
    buffer = io.BytesIO()
    pixels = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    Image.fromarray(pixels).resize(size).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    kinds = [
        ("RGB", (90, 70), "JPEG"),
        ("L", (64, 100), "JPEG"),
        ("P", (80, 80), "PNG"),
        ("RGB", (24, 40), "PNG"),
    ]
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i, (mode, size, kind) in enumerate(kinds):
                (folder / f"{i}.{'jpg' if kind == 'JPEG' else 'png'}").write_bytes(
                    encoded(rng, mode, size, kind)
                )
    return tmp_path / "images"


def reference(file, size: int) -> np.ndarray:
    """Pillow's own decoder and bicubic filter."""
    image = Image.open(file).convert("RGB")
    short = min(image.size)
    image = image.resize(
        [int(side * size / short) for side in image.size], Image.Resampling.BICUBIC
    )
    left, top = (image.width - size) / 2, (image.height - size) / 2
    return np.asarray(image.crop((round(left), round(top), round(left) + size, round(top) + size)))


def test_class_folders_to_pillows_pixels(folders, tmp_path):
    store = prepare_store(str(folders), str(tmp_path / "store"), 48)
    assert store.classes == ["cat", "dog"]
    train = store.splits["train"]
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    out = np.empty((8, 48, 48, 3), np.uint8)
    train.read(np.arange(8), out)
    for image, file in zip(out, sorted((folders / "train").glob("*/*")), strict=True):
        difference = np.abs(image.astype(int) - reference(file, 48))
        assert difference.mean() < 0.5, file
    pixels = out.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(store.mean, out.mean(0, dtype=np.float64), rtol=1e-6)
    covariance = (
        store.color_vectors * store.color_std.astype(np.float64) ** 2 @ store.color_vectors.T
    )
    np.testing.assert_allclose(covariance, np.cov(pixels.T, bias=True), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [32, 48, 256])
def test_color_sums_are_exact(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    pixels[: size // 2] = 255
    flat = pixels.reshape(-1, 3).astype(np.int64)
    assert (color_products(pixels) == flat.T @ flat).all()


def test_photographs_come_out_as_pillows(small_store, tmp_path):
    photographs(small_store, 8, tmp_path / "made")
    for i, file in enumerate(sorted((tmp_path / "made").glob("*/*/*.jpg"))):
        size = [(500, 375), (375, 500), (400, 281), (1024, 768), (256, 300)][i % 5]
        Image.open(file).resize(size, Image.Resampling.BICUBIC).save(
            file, quality=92, subsampling=i % 3
        )
        actual = decode(file.read_bytes(), 256, "bicubic", exif=False)
        assert isinstance(actual, np.ndarray)
        difference = np.abs(actual.astype(int) - reference(file, 256))
        assert difference.max() <= 1 and difference.mean() <= 0.05, (
            size,
            difference.max(),
            difference.mean(),
        )


def test_parquet(tmp_path):
    rng = np.random.default_rng(0)
    features = {
        "label": {"names": ["x", "y", "z"], "_type": "ClassLabel"},
        "image": {"_type": "Image"},
    }
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    source = tmp_path / "parquet"
    source.mkdir()
    images = [encoded(rng, "RGB", (32, 32), "PNG") for _ in range(6)]
    table = pa.table(
        {"image": [{"bytes": p, "path": None} for p in images], "label": [0, 1, 2, 2, 1, 0]}
    )
    for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
        pq.write_table(table.replace_schema_metadata(metadata), source / name)
    store = prepare_store(str(source), str(tmp_path / "store"), 32)
    assert store.classes == ["x", "y", "z"]
    assert store.splits["val"].labels.tolist() == [0, 1, 2, 2, 1, 0]
    out = np.empty((6, 32, 32, 3), np.uint8)
    store.splits["train"].read(np.arange(6), out)
    np.testing.assert_array_equal(out, [np.asarray(Image.open(io.BytesIO(p))) for p in images])
    wrong = table.set_column(1, "label", [[0, 1, 2, 2, 1, 7]]).replace_schema_metadata(metadata)
    pq.write_table(wrong, source / "train-00000-of-00001.parquet")
    problem = run("prepare.py", f"source={source}", f"folder={tmp_path / 'other'}")
    assert problem.returncode == 1 and "row 5: label 7 lies outside 0..2" in problem.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_second_prepare_changes_nothing(folders, tmp_path):
    prepare_store(str(folders), str(tmp_path / "store"), 48)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "store").iterdir()}
    prepare_store(str(folders), str(tmp_path / "store"), 48)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "store").iterdir()}
    with pytest.raises(ValueError, match="holds another store"):
        prepare_store(str(folders), str(tmp_path / "store"), 32)


def test_bad_images_are_listed_and_mended(folders, tmp_path):
    torn = folders / "train" / "cat" / "torn.jpg"
    torn.write_bytes(b"\xff\xd8 torn")
    (folders / "val" / "dog" / "void.jpg").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"2 of 18 images can't be read: train/cat/torn.jpg.*max_bad=2"
    ):
        prepare_store(str(folders), str(tmp_path / "store"), 48)
    left_out = prepare_store(str(folders), str(tmp_path / "left out"), 48, max_bad=2)
    bad = dict(
        line.split("\t") for line in (tmp_path / "left out" / "bad.tsv").read_text().splitlines()
    )
    assert (
        list(bad) == ["train/cat/torn.jpg", "val/dog/void.jpg"]
        and bad["val/dog/void.jpg"] == "is empty"
    )
    assert [len(split) for split in left_out.splits.values()] == [8, 8]
    torn.unlink(), (folders / "val" / "dog" / "void.jpg").unlink()
    whole = prepare_store(str(folders), str(tmp_path / "store"), 48)
    assert whole.splits["train"].labels.tolist() == [0] * 4 + [1] * 4
    assert {p.name for p in tmp_path.iterdir()} == {"images", "store", "left out"}


def test_classes_without_images(folders, tmp_path):
    (folders / "train" / "empty").mkdir()
    with pytest.raises(
        ValueError, match="empty is in one split only; class folder .*empty has no image"
    ):
        prepare_store(str(folders), str(tmp_path / "store"), 48)


def test_a_broken_store_is_named(tmp_path):
    images, labels = np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 1, 1])
    store_of(tmp_path / "store", ["a", "b"], train=(images, labels), val=(images, labels)).verify()
    shard = tmp_path / "store" / "train-00000.bin"
    shard.write_bytes(bytes([1]) + shard.read_bytes()[1:])
    with pytest.raises(ValueError, match="train-00000.bin changed since it was written"):
        Store(tmp_path / "store").verify()
    shard.write_bytes(b"short")
    np.save(tmp_path / "store" / "val-labels.npy", np.array([0, 1, 2]))
    with pytest.raises(
        ValueError,
        match=r"train-00000.bin has 5 bytes and not 144; val-labels.npy has labels outside",
    ):
        Store(tmp_path / "store")


def test_labels_outside_the_classes_make_no_store(tmp_path):
    images = np.zeros((3, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="train-labels.npy has labels outside 0..1"):
        store_of(
            tmp_path / "store",
            ["a", "b"],
            train=(images, np.array([0, 1, 2])),
            val=(images, np.zeros(3)),
        )
    assert not (tmp_path / "store").exists()


def test_a_killed_prepare_goes_on_to_the_same_bytes(tmp_path):
    """By SIGKILL at random moments, `KILLS=20 pytest -k killed` of them; resumed, each is the uninterrupted store, byte
    for byte."""
    rng = np.random.default_rng(0)
    for i in range(700):
        folder = tmp_path / "images" / ("train" if i < 600 else "val") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(encoded(rng, "RGB", (96, 80)))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    source = str(tmp_path / "images")
    begun = time.monotonic()
    prepare_store(source, str(whole), 64)
    lasts = time.monotonic() - begun
    command = [sys.executable, "prepare.py", f"source={source}", f"folder={killed}", "size=64"]
    wanted, kills = int(os.environ.get("KILLS", 3)), 0
    while kills < wanted:
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while process.poll() is None and not tmp_path.joinpath("killed.parts").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, lasts))
        process.kill()
        kills += process.wait() == -signal.SIGKILL and not killed.exists()
        prepare_store(source, str(killed), 64)
        assert contents(killed) == contents(whole)
        assert not list(tmp_path.glob("killed.*"))
        shutil.rmtree(killed)


@pytest.fixture
def tiny_disk(tmp_path):
    """Six megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_line_and_resumable(tiny_disk, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(600):
        folder = tmp_path / "images" / ("train" if i < 500 else "val") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(encoded(rng, "RGB", (32, 32), "PNG"))
    command = [
        "prepare.py",
        f"source={tmp_path / 'images'}",
        f"folder={tiny_disk / 'store'}",
        "size=32",
    ]
    filler = tiny_disk / "filler"
    filler.write_bytes(bytes(5_000_000))
    done = run(*command)
    (said,) = done.stderr.splitlines()
    assert (
        done.returncode == 1 and "still needs 0.002 GB and the disk has 0.001 GB: make room" in said
    )
    filler.unlink()

    plan_checked = "alexnet.data.store.writer._check_space"  # as if another program had filled the disk meanwhile
    filler.write_bytes(bytes(6_000_000))
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(OSError, match="is full: make room and start again"),
    ):
        patch.setattr(plan_checked, lambda *_: None)
        prepare_store(str(tmp_path / "images"), str(tiny_disk / "store"), 32)
    filler.unlink()
    prepare_store(str(tmp_path / "images"), str(tiny_disk / "store"), 32).verify()


def test_a_hundred_thousand_images_open_and_shuffle_at_once(tmp_path):
    """One-pixel images in as many shards as ImageNet-sized ones would have."""
    pixels, labels = np.zeros((100_000, 1, 1, 3), np.uint8), np.zeros(100_000, np.int64)
    store_of(tmp_path / "store", ["a"], train=(pixels, labels), val=(pixels[:1], labels[:1]))
    begun = time.process_time()
    store = Store(tmp_path / "store")
    assert time.process_time() - begun < 2  # 0.5 s on a free machine
    assert len(store.splits["train"].shards) == 391
    order = BatchSampler(1_281_167, 128, 0, 0, 1, train=True)
    begun = time.process_time()
    order.batch_ids()
    assert time.process_time() - begun < 1  # 0.2 s on a free machine
