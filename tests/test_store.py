"""From sources to a store: what is written, what is read back, and what is wrong with it."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_store, run_command
from PIL import Image

from alexnet.benchmarks.photographs import write_photographs
from alexnet.data.decode import decode
from alexnet.data.loader import BatchSampler
from alexnet.data.prepare import prepare_store
from alexnet.data.store import Store, open_store, reader
from alexnet.data.store.colors import sum_color_products
from alexnet.data.store.shards import LocalShards, Shard
from alexnet.data.store.writer import StoreWriter
from alexnet.errors import UserError

IMAGENET_IMAGES = 1_281_167


def encode_noise(
    rng: np.random.Generator, size: tuple[int, int], mode: str = "RGB", kind: str = "JPEG"
) -> bytes:
    """An image file of colored squares."""
    width, height = size
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write_two_classes(folder: Path, train: int, val: int, size: tuple[int, int], kind: str) -> None:
    """So many images in the class folders a and b."""
    rng = np.random.default_rng(0)
    for number in range(train + val):
        split = "train" if number < train else "val"
        file = folder / split / "ab"[number % 2] / f"{number}.{kind.lower()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_noise(rng, size, kind=kind))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders with four kinds of files each."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            (folder / "0.jpg").write_bytes(encode_noise(rng, (90, 70)))
            (folder / "1.jpg").write_bytes(encode_noise(rng, (64, 100), mode="L"))
            (folder / "2.png").write_bytes(encode_noise(rng, (80, 80), mode="P", kind="PNG"))
            (folder / "3.png").write_bytes(encode_noise(rng, (24, 40), kind="PNG"))
    return tmp_path / "images"


def read_with_pillow(file: Path, size: int) -> np.ndarray:
    """A file's center square by Pillow's own decoder and bicubic filter."""
    image = Image.open(file).convert("RGB")
    shorter = min(image.size)
    shape = [int(side * size / shorter) for side in image.size]
    image = image.resize(shape, Image.Resampling.BICUBIC)
    left = round((image.width - size) / 2)
    top = round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def read_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_class_folders_become_pillows_pixels(images: Path, tmp_path: Path):
    store = prepare_store(images, tmp_path / "store", 48)
    train = store.splits["train"]
    pixels = train.images(np.arange(8))
    files = sorted((images / "train").glob("*/*"))
    assert store.classes == ["cat", "dog"]
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    for image, file in zip(pixels, files, strict=True):
        difference = np.abs(image.astype(int) - read_with_pillow(file, 48))
        assert difference.mean() < 0.5, file


def test_statistics_are_those_of_the_training_images(images: Path, tmp_path: Path):
    store = prepare_store(images, tmp_path / "store", 48)
    pixels = store.splits["train"].images(np.arange(8))
    np.testing.assert_allclose(store.mean, pixels.mean(0, dtype=np.float64), rtol=1e-6)
    variances = store.color_std.astype(np.float64) ** 2
    covariance = store.color_vectors * variances @ store.color_vectors.T
    expected = np.cov(pixels.reshape(-1, 3).astype(np.float64).T, bias=True)
    np.testing.assert_allclose(covariance, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [32, 48, 256])
def test_color_sums_are_exact(size: int):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    pixels[: size // 2] = 255
    flat = pixels.reshape(-1, 3).astype(np.int64)
    np.testing.assert_array_equal(sum_color_products(pixels), flat.T @ flat)


def test_photographs_become_pillows_pixels(small_store: Store, tmp_path: Path):
    write_photographs(small_store, 8, tmp_path / "photographs")
    sizes = [(500, 375), (375, 500), (400, 281), (1024, 768), (256, 300)]
    for number, file in enumerate(sorted((tmp_path / "photographs").glob("*/*/*.jpg"))):
        image = Image.open(file).resize(sizes[number % 5], Image.Resampling.BICUBIC)
        image.save(file, quality=92, subsampling=number % 3)
        pixels = decode(file.read_bytes(), 256, "bicubic", exif=False)
        difference = np.abs(pixels.astype(int) - read_with_pillow(file, 256))
        assert difference.max() <= 1, image.size
        assert difference.mean() <= 0.05, image.size


def write_parquet(folder: Path, files: list[bytes], labels: list[int]) -> None:
    """A Hugging Face data set of three classes with the same images in both splits."""
    features = {
        "label": {"names": ["x", "y", "z"], "_type": "ClassLabel"},
        "image": {"_type": "Image"},
    }
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    column = [{"bytes": data, "path": None} for data in files]
    table = pa.table({"image": column, "label": labels}).replace_schema_metadata(metadata)
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def test_parquet_files_become_a_store(tmp_path: Path):
    rng = np.random.default_rng(0)
    files = [encode_noise(rng, (32, 32), kind="PNG") for _ in range(6)]
    write_parquet(tmp_path / "parquet", files, [0, 1, 2, 2, 1, 0])
    store = prepare_store(tmp_path / "parquet", tmp_path / "store", 32)
    expected = [np.asarray(Image.open(io.BytesIO(data))) for data in files]
    assert store.classes == ["x", "y", "z"]
    assert store.splits["val"].labels.tolist() == [0, 1, 2, 2, 1, 0]
    np.testing.assert_array_equal(store.splits["train"].images(np.arange(6)), expected)


def test_a_wrong_label_in_parquet_is_one_line(tmp_path: Path):
    file = encode_noise(np.random.default_rng(0), (32, 32), kind="PNG")
    write_parquet(tmp_path / "parquet", [file] * 6, [0, 1, 2, 2, 1, 7])
    finished = run_command(
        "prepare.py", f"source={tmp_path / 'parquet'}", f"folder={tmp_path / 'store'}"
    )
    assert finished.returncode == 1
    assert "row 5: label 7 lies outside 0..2" in finished.stderr


def test_a_second_prepare_changes_nothing(images: Path, tmp_path: Path):
    def list_times() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in (tmp_path / "store").iterdir()}

    prepare_store(images, tmp_path / "store", 48)
    before = list_times()
    prepare_store(images, tmp_path / "store", 48)
    assert list_times() == before
    with pytest.raises(UserError, match="holds another store"):
        prepare_store(images, tmp_path / "store", 32)


def test_bad_images_are_listed_and_can_be_left_out_or_repaired(images: Path, tmp_path: Path):
    corrupt = images / "train" / "cat" / "corrupt.jpg"
    empty = images / "val" / "dog" / "empty.jpg"
    corrupt.write_bytes(b"\xff\xd8 corrupt")
    empty.write_bytes(b"")
    listed = r"2 of 18 images can't be read: train/cat/corrupt.jpg.*max_bad=2"
    with pytest.raises(UserError, match=listed):
        prepare_store(images, tmp_path / "store", 48)

    without = prepare_store(images, tmp_path / "without", 48, max_bad=2)
    lines = (tmp_path / "without" / "bad.tsv").read_text().splitlines()
    bad = dict(line.split("\t") for line in lines)
    assert list(bad) == ["train/cat/corrupt.jpg", "val/dog/empty.jpg"]
    assert bad["val/dog/empty.jpg"] == "is empty"
    assert [len(split) for split in without.splits.values()] == [8, 8]

    corrupt.unlink()
    empty.unlink()
    repaired = prepare_store(images, tmp_path / "store", 48)
    assert repaired.splits["train"].labels.tolist() == [0] * 4 + [1] * 4
    assert {path.name for path in tmp_path.iterdir()} == {"images", "store", "without"}


def test_classes_without_images_are_refused(images: Path, tmp_path: Path):
    (images / "train" / "empty").mkdir()
    problems = "empty is in one split only; class folder .*empty has no image"
    with pytest.raises(UserError, match=problems):
        prepare_store(images, tmp_path / "store", 48)


@pytest.fixture
def three_images(tmp_path: Path) -> Store:
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    labels = np.array([0, 1, 1])
    return make_store(tmp_path / "store", ["a", "b"], train=(pixels, labels), val=(pixels, labels))


def test_a_changed_shard_is_found_by_its_hash(three_images: Store):
    three_images.verify()
    shard = three_images.folder / "train-00000.bin"
    shard.write_bytes(bytes([1]) + shard.read_bytes()[1:])
    with pytest.raises(UserError, match=r"train-00000\.bin changed since the store was written"):
        open_store(three_images.folder).verify()


def test_everything_wrong_with_a_store_is_listed(three_images: Store):
    folder = three_images.folder
    (folder / "train-00000.bin").write_bytes(b"short")
    (folder / "mean.npy").unlink()
    np.save(folder / "train-labels.npy", np.array([0, 1]))
    np.save(folder / "val-labels.npy", np.array([0, 1, 2]))
    problems = (
        r"is incomplete or damaged: mean\.npy is missing or corrupt; "
        r"train-00000\.bin has 5 bytes instead of 144; "
        r"train-labels\.npy has shape \(2,\) instead of \(3,\); "
        r"val-labels\.npy has labels outside 0\.\.1\. Delete it"
    )
    with pytest.raises(UserError, match=problems):
        open_store(folder)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", r"manifest\.json is corrupt"),
        ("[]", r"manifest\.json is corrupt"),
        ("{}", r"manifest\.json is corrupt"),
        ('{"format": 2}', "has format 2 instead of 3"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(three_images: Store, text: str, problem: str):
    (three_images.folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=f"data.folder={three_images.folder}.* {problem}"):
        open_store(three_images.folder)


def test_a_folder_without_a_store_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=f"data.folder={tmp_path} holds no prepared store"):
        open_store(tmp_path)


def test_labels_outside_the_classes_make_no_store(tmp_path: Path):
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    train = (pixels, np.array([0, 1, 2]))
    val = (pixels, np.zeros(3))
    with pytest.raises(UserError, match=r"train-labels\.npy has labels outside 0\.\.1"):
        make_store(tmp_path / "store", ["a", "b"], train=train, val=val)
    assert not (tmp_path / "store").exists()


def test_images_are_those_of_their_rows_in_raw_and_jpeg_stores(tmp_path: Path):
    """In any order, more than once, and across shards; the validation shard is not full."""
    write_two_classes(tmp_path / "images", 600, 20, size=(32, 32), kind="PNG")
    files = sorted((tmp_path / "images" / "train").glob("*/*"))
    rows = np.array([599, 0, 256, 255, 0, 512])
    expected = np.array([np.asarray(Image.open(files[row])) for row in rows])
    raw = prepare_store(tmp_path / "images", tmp_path / "raw", 32)
    np.testing.assert_array_equal(raw.splits["train"].images(rows), expected)
    jpeg = prepare_store(tmp_path / "images", tmp_path / "jpeg", 32, encoding="jpeg", quality=95)
    difference = np.abs(jpeg.splits["train"].images(rows) - expected.astype(int))
    assert difference.mean(axis=(1, 2, 3)).max() < 15


def test_pages_are_requested_only_after_a_batch_that_came_from_the_disk(
    three_images: Store, monkeypatch: pytest.MonkeyPatch
):
    blocks_read = iter([0, 8, 8, 8, 8, 8])  # before and after each of three batches
    requests: list[tuple[int, int]] = []
    monkeypatch.setattr(reader, "_count_blocks_read", lambda: next(blocks_read))
    monkeypatch.setattr(
        Shard, "request_pages", lambda self, begin, end: requests.append((begin, end))
    )
    split = three_images.splits["val"]
    for expected in ([(48, 96), (0, 48)], [(48, 96), (0, 48)], []):
        requests.clear()
        split.images(np.array([1, 0]))
        assert requests == expected


def test_a_killed_prepare_resumes_to_the_same_bytes(tmp_path: Path):
    """Killed at random moments, `KILLS=20 pytest -k killed` of them."""
    write_two_classes(tmp_path / "images", 600, 100, size=(96, 80), kind="JPEG")
    uninterrupted = tmp_path / "uninterrupted"
    killed = tmp_path / "killed"
    started = time.monotonic()
    prepare_store(tmp_path / "images", uninterrupted, 64)
    duration = time.monotonic() - started
    rng = np.random.default_rng(0)
    options = [f"source={tmp_path / 'images'}", f"folder={killed}", "size=64"]
    kills = 0
    while kills < int(os.environ.get("KILLS", 3)):
        kills += kill_prepare(options, tmp_path / "killed.parts", rng.uniform(0, duration))
        prepare_store(tmp_path / "images", killed, 64)
        assert read_files(killed) == read_files(uninterrupted)
        assert not list(tmp_path.glob("killed.*"))
        shutil.rmtree(killed)


def kill_prepare(options: list[str], records: Path, seconds: float) -> bool:
    """Kills `prepare.py` so many seconds after it has begun to write; False if it was faster."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "prepare.py", *options], cwd=ROOT, **quiet)
    while process.poll() is None and not records.exists():
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    return process.wait() == -signal.SIGKILL and records.exists()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of six megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small_is_one_line(tiny_disk: Path, tmp_path: Path):
    write_two_classes(tmp_path / "images", 500, 100, size=(32, 32), kind="PNG")
    (tiny_disk / "filler").write_bytes(bytes(5_000_000))
    options = [f"source={tmp_path / 'images'}", f"folder={tiny_disk / 'store'}", "size=32"]
    finished = run_command("prepare.py", *options)
    (line,) = finished.stderr.splitlines()
    assert finished.returncode == 1
    assert "still needs 0.002 GB and the disk has 0.001 GB: free some space" in line


def test_writing_resumes_after_the_disk_was_full(
    tiny_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_two_classes(tmp_path / "images", 500, 100, size=(32, 32), kind="PNG")
    filler = tiny_disk / "filler"
    filler.write_bytes(bytes(6_000_000))
    with monkeypatch.context() as patch:
        # As if another program had filled the disk after the check.
        patch.setattr(StoreWriter, "_check_space", lambda self, shards: None)
        with pytest.raises(UserError, match="is full: free some space and repeat the command"):
            prepare_store(tmp_path / "images", tiny_disk / "store", 32)
    filler.unlink()
    prepare_store(tmp_path / "images", tiny_disk / "store", 32).verify()


def count_calls(work: Callable[[], Any]) -> int:
    """Calls of Python and C functions, which bound the work done outside NumPy's own loops."""
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


@pytest.fixture
def many_shards(tmp_path: Path) -> Store:
    """100,000 images of one pixel in 391 shards."""
    pixels = np.zeros((100_000, 1, 1, 3), np.uint8)
    labels = np.zeros(100_000, np.int64)
    train = (pixels, labels)
    return make_store(tmp_path / "store", ["a"], train=train, val=(pixels[:1], labels[:1]))


def test_a_store_may_have_more_shards_than_the_system_opens_files_at_first(many_shards: Store):
    script = (
        "import resource, sys\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))\n"
        "import numpy as np\n"
        "from alexnet.data.store import open_store\n"
        "split = open_store(sys.argv[1]).splits['train']\n"
        "split.images(np.arange(0, 100_000, 256))\n"
    )
    finished = run_command("-c", script, str(many_shards.folder))
    assert finished.returncode == 0, finished.stderr


def test_opening_a_store_touches_neither_images_nor_shards(many_shards: Store):
    shards = LocalShards(many_shards.folder)
    calls = count_calls(lambda: Store(shards))
    assert calls < 50 * 391
    assert not shards.opened


def test_shuffling_does_no_work_per_image_outside_numpy():
    sampler = BatchSampler(images=IMAGENET_IMAGES, batch_size=128, train=True)
    assert count_calls(sampler.list_batch_ids) < 100
