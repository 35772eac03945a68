"""A store whose home is an object store, served on loopback."""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import s3fs
from conftest import ROOT, store_of
from moto.server import ThreadedMotoServer

from alexnet.data.loader import BatchSampler, Loader
from alexnet.data.store.reader import Store, open_store

SHARDS = 9


@contextmanager
def object_store():
    """A server and its empty bucket; the environment tells s3fs, in child processes too, where it is."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (
            ("ACCESS_KEY_ID", "x"),
            ("SECRET_ACCESS_KEY", "x"),
            ("DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem().mkdir(f"bucket{port}")  # moto remembers those of earlier servers
        yield server, f"s3://bucket{port}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def home(store):
    """The store's address in the bucket."""
    with object_store() as (server, bucket):
        s3fs.S3FileSystem().put(str(store.folder), f"{bucket}/store", recursive=True)
        yield f"{bucket}/store"
        server.stop()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Nine shards to train on, the last not full."""
    rng = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 256, (count, 8, 8, 3), np.uint8), rng.integers(0, 3, count)

    folder = tmp_path_factory.mktemp("streamed") / "store"
    return store_of(folder, list("abc"), train=split((SHARDS - 1) * 256 + 100), val=split(300))


def batches(
    store: Store, split: str, window: int = 2, epoch: int = 0, rank: int = 0, ranks: int = 1
) -> list:
    images, train = store.splits[split], split == "train"
    order = BatchSampler(len(images), 64, 0, rank, ranks, train, window, images.starts)
    order.set_epoch(epoch)
    return [tuple(part.numpy().copy() for part in batch) for batch in Loader(images, order)]


def shards(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.bin"))


def test_batches_are_those_of_the_same_store_on_disk(home, store, tmp_path):
    limit = 4 * 256 * 8 * 8 * 3  # four shards of eleven
    far = open_store(home, cache=str(tmp_path), cache_gb=limit / 1e9)
    for split, epoch in (("train", 0), ("train", 1), ("val", 0)):
        for ours, theirs in zip(
            batches(far, split, 2, epoch), batches(store, split, 2, epoch), strict=True
        ):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
        assert 0 < shards(far.folder) <= limit
    again = open_store(home, cache=str(tmp_path), cache_gb=limit / 1e9)
    assert again.folder == far.folder and shards(far.folder) <= limit


def test_a_window_of_shards_is_shuffled_at_a_time(store):
    starts = store.splits["train"].starts

    def epoch(number: int, ranks: int) -> np.ndarray:
        orders = [
            BatchSampler(starts[-1], 12, 5, rank, ranks, True, 3, starts) for rank in range(ranks)
        ]
        for order in orders:
            order.set_epoch(number)
        return np.concatenate(
            [np.concatenate(parts) for parts in zip(*(o.batch_ids() for o in orders), strict=True)]
        )

    ids = epoch(0, 1)
    assert len(set(ids.tolist())) == len(ids) == starts[-1] // 12 * 12
    live = [set((ids[i : i + 512] // 256).tolist()) for i in range(0, len(ids), 512)]
    assert max(map(len, live)) <= 6 and len(live[0]) == 3  # at most two windows
    assert not np.array_equal(ids, epoch(1, 1))
    assert 0 < np.mean(np.diff(ids) < 0) < 0.6  # images are shuffled too
    for ranks in (2, 3):
        np.testing.assert_array_equal(ids, epoch(0, ranks))


def test_what_is_wrong_is_one_line(home, store, tmp_path):
    def opened(url: str) -> Store:
        return open_store(url, cache=str(tmp_path), cache_gb=1)

    far = opened(home)
    s3fs.S3FileSystem().pipe(f"{home}/train-00004.bin", b"short")
    with pytest.raises(
        ConnectionError, match="train-00004.bin can't be fetched: 5 of 49152 bytes came"
    ):
        batches(far, "train")
    s3fs.S3FileSystem().put(str(store.folder / "train-00004.bin"), f"{home}/train-00004.bin")
    far = opened(home)
    s3fs.S3FileSystem().rm(f"{home}/train-00004.bin")
    with pytest.raises(
        ConnectionError, match=f"data.folder={home}: train-00004.bin can't be fetched: .*not"
    ):
        batches(far, "train")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(
        ValueError, match=f"data.folder={home} is not whole: train-00004.bin has 0 bytes"
    ):
        opened(home)
    with pytest.raises(ConnectionError, match="s3://.*/none: manifest.json can't be fetched"):
        opened(home.replace("store", "none"))
    with pytest.raises(
        ValueError, match="data.folder=sea://bucket can't be opened: Protocol not known: sea"
    ):
        opened("sea://bucket")


def test_a_run_streams_and_ends_in_one_line_if_the_server_does(small, small_store, tmp_path):
    """From the first epoch's end on there is no server; the cache holds less than the store."""
    with object_store() as (server, bucket):
        s3fs.S3FileSystem().put(str(small_store.folder), f"{bucket}/store", recursive=True)
        typed = [option for option in small if not option.startswith("data.folder")]
        place = [
            f"data.cache={tmp_path / 'cache'}",
            "data.window=1",
            "data.cache_gb=0.01",
            f"data.folder={bucket}/store",
        ]
        command = [
            sys.executable,
            "train.py",
            *typed,
            *place,
            f"hydra.run.dir={tmp_path / 'run'}",
            "trainer.max_epochs=99",
        ]
        run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while not list(tmp_path.glob("run/checkpoints/*.ckpt")) and run.poll() is None:
            time.sleep(0.1)
        server.stop()
        _, said = run.communicate(timeout=120)
    assert run.returncode == 1 and said.splitlines()[-1].startswith(
        f"error: data.folder={bucket}/store: "
    ), said
