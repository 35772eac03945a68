"""Sources, prepare and the store they make."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run
from PIL import Image

from alexnet.data.prepare import prepare_store
from alexnet.data.store import Store, StoreWriter


def encoded(rng: np.random.Generator, mode: str, size: tuple[int, int], kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    Image.fromarray(pixels).resize(size).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    kinds = [("RGB", (90, 70), "JPEG"), ("L", (64, 100), "JPEG"), ("P", (80, 80), "PNG"), ("RGB", (24, 40), "PNG")]
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i, (mode, size, kind) in enumerate(kinds):
                (folder / f"{i}.{'jpg' if kind == 'JPEG' else 'png'}").write_bytes(encoded(rng, mode, size, kind))
    return tmp_path / "pictures"


def reference(file, size: int) -> np.ndarray:
    """Pillow's own decoder and bicubic filter."""
    picture = Image.open(file).convert("RGB")
    short = min(picture.size)
    picture = picture.resize([int(side * size / short) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = (picture.width - size) / 2, (picture.height - size) / 2
    return np.asarray(picture.crop((round(left), round(top), round(left) + size, round(top) + size)))


def test_class_folders_to_pillows_pixels(folders, tmp_path):
    store = prepare_store(str(folders), str(tmp_path / "store"), 48)
    assert store.classes == ["cat", "dog"]
    train = store.splits["train"]
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    out = np.empty((8, 48, 48, 3), np.uint8)
    train.read(np.arange(8), out)
    for picture, file in zip(out, sorted((folders / "train").glob("*/*")), strict=True):
        difference = np.abs(picture.astype(int) - reference(file, 48))
        assert difference.mean() < 0.5, file
    pixels = out.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(store.mean, out.mean(0, dtype=np.float64), rtol=1e-6)
    covariance = store.color_vectors * store.color_std.astype(np.float64) ** 2 @ store.color_vectors.T
    np.testing.assert_allclose(covariance, np.cov(pixels.T, bias=True), rtol=1e-4, atol=1e-3)


def test_parquet(tmp_path):
    rng = np.random.default_rng(0)
    features = {"label": {"names": ["x", "y", "z"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    source = tmp_path / "parquet"
    source.mkdir()
    pictures = [encoded(rng, "RGB", (32, 32), "PNG") for _ in range(6)]
    table = pa.table({"image": [{"bytes": p, "path": None} for p in pictures], "label": [0, 1, 2, 2, 1, 0]})
    for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
        pq.write_table(table.replace_schema_metadata(metadata), source / name)
    store = prepare_store(str(source), str(tmp_path / "store"), 32)
    assert store.classes == ["x", "y", "z"]
    assert store.splits["val"].labels.tolist() == [0, 1, 2, 2, 1, 0]
    out = np.empty((6, 32, 32, 3), np.uint8)
    store.splits["train"].read(np.arange(6), out)
    np.testing.assert_array_equal(out, [np.asarray(Image.open(io.BytesIO(p))) for p in pictures])
    wrong = table.set_column(1, "label", [[0, 1, 2, 2, 1, 7]]).replace_schema_metadata(metadata)
    pq.write_table(wrong, source / "train-00000-of-00001.parquet")
    problem = run("prepare.py", f"source={source}", f"folder={tmp_path / 'other'}")
    assert problem.returncode == 1 and "row 5: label 7 lies outside 0..2" in problem.stderr.splitlines()[-1]


def test_a_second_prepare_changes_nothing(folders, tmp_path):
    prepare_store(str(folders), str(tmp_path / "store"), 48)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "store").iterdir()}
    prepare_store(str(folders), str(tmp_path / "store"), 48)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "store").iterdir()}
    with pytest.raises(ValueError, match="another"):
        prepare_store(str(folders), str(tmp_path / "store"), 32)


def test_bad_sources_leave_nothing(folders, tmp_path):
    (folders / "train" / "cat" / "torn.jpg").write_bytes(b"\xff\xd8 torn")
    with pytest.raises(ValueError, match=r"1 of 17 pictures can't be decoded: .*torn.jpg"):
        prepare_store(str(folders), str(tmp_path / "store"), 48)
    (folders / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is in one split only; class folder .*empty has no picture"):
        prepare_store(str(folders), str(tmp_path / "store"), 48)
    assert [p.name for p in tmp_path.iterdir()] == ["pictures"]


def test_a_broken_store_is_named(tmp_path):
    with StoreWriter(tmp_path / "store", 4, ["a", "b"], {}) as writer:
        for split in ("train", "val"):
            writer.add(split, np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 1, 1]))
    (tmp_path / "store" / "train-00000.bin").write_bytes(b"short")
    np.save(tmp_path / "store" / "val-labels.npy", np.array([0, 1, 2]))
    with pytest.raises(ValueError, match=r"train-00000.bin has 5 bytes and not 144; val-labels.npy has labels outside"):
        Store(tmp_path / "store")


def test_labels_outside_the_classes(tmp_path):
    with (
        pytest.raises(ValueError, match="train: labels 0..2 lie outside 0..1"),
        StoreWriter(tmp_path / "store", 4, ["a", "b"], {}) as writer,
    ):
        writer.add("train", np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 2]))
    assert not list(tmp_path.iterdir())
