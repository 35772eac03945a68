"""A store at a URL: an object store that is served on loopback."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import s3fs
from conftest import ROOT, make_store
from moto.server import ThreadedMotoServer

from alexnet.data.augment import Augment
from alexnet.data.datamodule import StoreData
from alexnet.data.loader import BatchSampler, Loader, RawBatch
from alexnet.data.store import Store, open_store
from alexnet.errors import UserError

SHARDS = 9
SHARD_BYTES = 256 * 8 * 8 * 3
Open = Callable[..., Store]


@contextmanager
def serve_bucket() -> Iterator[tuple[ThreadedMotoServer, str]]:
    """A server and its empty bucket; the environment tells s3fs where it is, in children too."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket = f"bucket{port}"  # moto remembers the buckets of earlier servers
        s3fs.S3FileSystem().mkdir(bucket)
        yield server, f"s3://{bucket}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Nine training shards, the last one not full, and two for validation."""
    rng = np.random.default_rng(0)

    def draw_split(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 256, (count, 8, 8, 3), np.uint8), rng.integers(0, 3, count)

    folder = tmp_path_factory.mktemp("streamed") / "store"
    train = draw_split((SHARDS - 1) * 256 + 100)
    return make_store(folder, list("abc"), train=train, val=draw_split(300))


@pytest.fixture
def url(store: Store) -> Iterator[str]:
    """The store's address in a bucket."""
    with serve_bucket() as (server, bucket):
        s3fs.S3FileSystem().put(str(store.folder), f"{bucket}/store", recursive=True)
        yield f"{bucket}/store"
        server.stop()


@pytest.fixture
def open_remote(tmp_path: Path) -> Open:
    """Opens a URL with room for so many shards in the cache."""

    def call(url: str, shards: int = 100) -> Store:
        return open_store(url, cache=tmp_path, cache_gb=shards * SHARD_BYTES / 1e9)

    return call


def read_batches(store: Store, split: str, epoch: int = 0, window: int = 2) -> list[RawBatch]:
    images = store.splits[split]
    sampler = BatchSampler(
        images=len(images),
        batch_size=64,
        train=split == "train",
        window=window,
        starts=images.starts,
    )
    sampler.set_epoch(epoch)
    loader = Loader(images, sampler)
    return [batch._replace(images=batch.images.clone()) for batch in loader]


def count_cached_bytes(store: Store) -> int:
    return sum(file.stat().st_size for file in store.folder.glob("*.bin"))


@pytest.mark.parametrize(("split", "epoch"), [("train", 0), ("train", 1), ("val", 0)])
def test_batches_are_those_of_the_same_store_on_disk(
    url: str, store: Store, open_remote: Open, split: str, epoch: int
):
    remote = open_remote(url, shards=4)
    batches = read_batches(remote, split, epoch)
    expected_batches = read_batches(store, split, epoch)
    for batch, expected_batch in zip(batches, expected_batches, strict=True):
        for tensor, expected in zip(batch, expected_batch, strict=True):
            np.testing.assert_array_equal(tensor, expected)
    assert 0 < count_cached_bytes(remote) <= 4 * SHARD_BYTES


def test_the_cache_outlives_the_run_within_its_limit(url: str, open_remote: Open):
    first = open_remote(url, shards=4)
    read_batches(first, "train")
    cached = {file.name for file in first.folder.glob("*.bin")}
    second = open_remote(url, shards=2)
    assert second.folder == first.folder
    assert set(second.shards.recent) < cached  # those that are kept are known, and not requested
    read_batches(second, "train")
    assert 0 < count_cached_bytes(second) <= 2 * SHARD_BYTES


def test_processes_share_what_each_has_downloaded(url: str, open_remote: Open):
    first = open_remote(url)
    read_batches(first, "train")
    first.shards.pool.shutdown()
    second = open_remote(url)
    s3fs.S3FileSystem().rm([f"{url}/train-{number:05d}.bin" for number in range(SHARDS)])
    assert len(read_batches(second, "train")) == len(first.splits["train"]) // 64


def test_an_evicted_shard_stays_readable_and_is_downloaded_again(
    url: str, store: Store, open_remote: Open
):
    remote = open_remote(url, shards=1)
    first = remote.shards.open("train-00000.bin")
    remote.shards.open("train-00001.bin")
    expected = (store.folder / "train-00000.bin").read_bytes()
    assert not (remote.folder / "train-00000.bin").exists()
    assert first.bytes.tobytes() == expected
    assert remote.shards.open("train-00000.bin").bytes.tobytes() == expected
    assert (remote.folder / "train-00000.bin").exists()


def list_epoch(starts: np.ndarray, epoch: int, ranks: int = 1) -> np.ndarray:
    """The images of an epoch in their order, as the ranks read them together."""
    batches = []
    for rank in range(ranks):
        sampler = BatchSampler(
            images=starts[-1],
            batch_size=12,
            train=True,
            seed=5,
            rank=rank,
            world_size=ranks,
            window=3,
            starts=starts,
        )
        sampler.set_epoch(epoch)
        batches.append(np.array(sampler.list_batch_ids()))
    return np.concatenate(batches, axis=1).flatten()


def test_each_image_of_a_windowed_epoch_comes_once_in_an_order_of_its_own(store: Store):
    starts = store.splits["train"].starts
    ids = list_epoch(starts, epoch=0)
    assert len(ids) == starts[-1] // 12 * 12
    assert len(set(ids.tolist())) == len(ids)
    assert not np.array_equal(ids, list_epoch(starts, epoch=1))


def test_a_window_of_shards_is_shuffled_at_a_time(store: Store):
    ids = list_epoch(store.splits["train"].starts, epoch=0)
    shards = [set((ids[first : first + 512] // 256).tolist()) for first in range(0, len(ids), 512)]
    assert len(shards[0]) == 3
    assert max(map(len, shards)) <= 6  # at most two windows
    assert 0 < np.mean(np.diff(ids) < 0) < 0.6  # images are shuffled too


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_of_a_windowed_epoch(store: Store, ranks: int):
    starts = store.splits["train"].starts
    np.testing.assert_array_equal(list_epoch(starts, 0, ranks), list_epoch(starts, 0))


def test_a_truncated_download_is_one_line(url: str, open_remote: Open):
    remote = open_remote(url)
    s3fs.S3FileSystem().pipe(f"{url}/train-00004.bin", b"short")
    reason = r"can't download train-00004\.bin \(5 of 49152 bytes arrived\)"
    with pytest.raises(UserError, match=f"data.folder={url}: {reason}"):
        read_batches(remote, "train")


def test_a_shard_that_vanishes_is_one_line(url: str, open_remote: Open):
    remote = open_remote(url)
    s3fs.S3FileSystem().rm(f"{url}/train-00004.bin")
    with pytest.raises(UserError, match=rf"{url}: can't download train-00004\.bin \(.*not"):
        read_batches(remote, "train")


def test_a_missing_shard_is_found_when_the_store_is_opened(url: str, open_remote: Open):
    s3fs.S3FileSystem().rm(f"{url}/train-00004.bin")
    s3fs.S3FileSystem.clear_instance_cache()
    problem = r"is incomplete or damaged: train-00004\.bin has 0 bytes"
    with pytest.raises(UserError, match=f"data.folder={url} {problem}"):
        open_remote(url)


def test_a_url_without_a_store_is_one_line(url: str, open_remote: Open):
    with pytest.raises(UserError, match=r"s3://.*/none: can't download manifest\.json"):
        open_remote(url.replace("store", "none"))


def test_a_cache_too_small_for_two_windows_is_named(url: str, tmp_path: Path):
    problem = r"data.cache_gb=0.0001 is too small for two windows of 3 shards \(0\.000 GB\)"
    build_augment = partial(Augment, crop=8)
    with pytest.raises(UserError, match=problem):
        StoreData(
            url, None, 64, None, build_augment, 0, window=3, cache=str(tmp_path), cache_gb=1e-4
        )


def test_an_unknown_protocol_is_one_line(open_remote: Open):
    problem = "data.folder=sea://bucket can't be opened: Protocol not known: sea"
    with pytest.raises(UserError, match=problem):
        open_remote("sea://bucket")


def test_a_run_streams_and_ends_in_one_line_if_the_server_does(
    small_options: list[str], small_store: Store, tmp_path: Path
):
    """After the first epoch there is no server, and the cache holds less than the store."""
    options = [option for option in small_options if not option.startswith("data.folder")]
    options += [
        f"data.cache={tmp_path / 'cache'}",
        "data.window=1",
        "data.cache_gb=0.01",
        f"hydra.run.dir={tmp_path / 'run'}",
        "trainer.max_epochs=99",
    ]
    with serve_bucket() as (server, bucket):
        s3fs.S3FileSystem().put(str(small_store.folder), f"{bucket}/store", recursive=True)
        command = [sys.executable, "train.py", *options, f"data.folder={bucket}/store"]
        run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while not list(tmp_path.glob("run/checkpoints/*.ckpt")) and run.poll() is None:
            time.sleep(0.1)
        server.stop()
        _, stderr = run.communicate(timeout=120)
    assert run.returncode == 1
    assert stderr.splitlines()[-1].startswith(f"error: data.folder={bucket}/store: "), stderr
