"""Batches and their order, and what the augmentation makes of them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alexnet import rng
from alexnet.data import datamodule
from alexnet.data.augment import Augment
from alexnet.data.datamodule import StoreData
from alexnet.data.loader import BatchSampler, Loader, RawBatch
from alexnet.data.store import Store
from alexnet.errors import UserError

COLOR_STD = np.array([20.0, 37.0, 122.0])


def draw(seed: int, epoch: int, ids: Tensor, count: int) -> Tensor:
    return rng.draw_uniform(rng.make_keys(seed, epoch, ids), 0, count)


def build_training_loader(store: Store, threads: int = 2) -> Loader:
    """Six batches of eight images."""
    return Loader(store.splits["train"], BatchSampler(images=48, batch_size=8, train=True), threads)


def copy_batches(loader: Loader) -> list[RawBatch]:
    """The batches, in memory that the loader does not use again."""
    return [batch._replace(images=batch.images.clone()) for batch in loader]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_covers_each_image_once(small_store: Store, world_size: int):
    seen: list[int] = []
    for rank in range(world_size):
        sampler = BatchSampler(
            images=1003, batch_size=96, train=False, rank=rank, world_size=world_size
        )
        for batch in Loader(small_store.splits["val"], sampler):
            seen += batch.ids[batch.weights > 0].tolist()
    assert sorted(seen) == list(range(1003))


def list_training_batches(epoch: int, world_size: int) -> np.ndarray:
    """(batches, batch_size) images, as the ranks read them together."""
    ranks = []
    for rank in range(world_size):
        sampler = BatchSampler(
            images=1000, batch_size=96, train=True, seed=7, rank=rank, world_size=world_size
        )
        sampler.set_epoch(epoch)
        ranks.append(np.array(sampler.list_batch_ids()))
    return np.concatenate(ranks, axis=1)


def test_training_batches_are_the_same_for_any_number_of_ranks():
    np.testing.assert_array_equal(list_training_batches(3, 1), list_training_batches(3, 3))


def test_training_images_come_at_most_once_in_an_order_of_the_epoch():
    ids = list_training_batches(3, 1)
    assert ids.shape == (10, 96)
    assert len(np.unique(ids)) == 960
    assert not np.array_equal(ids, list_training_batches(4, 1))


def test_the_loader_gives_the_bytes_and_labels_of_the_store(small_store: Store):
    split = small_store.splits["train"]
    for batch in build_training_loader(small_store):
        ids = batch.ids.numpy()
        np.testing.assert_array_equal(batch.images, split.images(ids))
        np.testing.assert_array_equal(batch.labels, split.labels[ids])
        assert batch.weights.tolist() == [1.0] * 8


def test_a_loader_resumes_with_the_next_batch(small_store: Store):
    loader = build_training_loader(small_store)
    expected = [batch.ids.tolist() for batch in copy_batches(loader)]
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    resumed = build_training_loader(small_store)
    resumed.load_state_dict(loader.state_dict())
    assert [batch.ids.tolist() for batch in copy_batches(resumed)] == expected[2:]
    assert len(copy_batches(resumed)) == 6  # the next epoch


def test_the_end_of_an_epoch_is_the_beginning_of_the_next(small_store: Store):
    loader = build_training_loader(small_store)
    copy_batches(loader)
    assert loader.position == 6
    assert loader.state_dict() == {"position": 0}


def test_buffers_are_reused(small_store: Store):
    loader = build_training_loader(small_store, threads=2)
    buffers = set()
    for _ in range(3):
        buffers |= {batch.images.data_ptr() for batch in loader}
    assert len(buffers) <= 4  # one for each batch that is read ahead, and one for the loop


@pytest.mark.parametrize(
    ("batch_size", "devices", "problem"),
    [
        (128, 3, "data.batch_size=128 is not divisible by 3 devices: use 126 or 129"),
        (2, 3, "data.batch_size=2 is not divisible by 3 devices: use 3$"),
        (0, 1, "data.batch_size=0 must be at least 1"),
        (1001, 1, "data.batch_size=1001 is larger than the training set of 1000 images"),
    ],
)
def test_batch_sizes_that_do_not_fit_are_named(batch_size: int, devices: int, problem: str):
    with pytest.raises(UserError, match=problem):
        BatchSampler(images=1000, batch_size=batch_size, train=True, world_size=devices)


def test_only_the_loaders_threads_use_one_torch_thread(
    small_store: Store, monkeypatch: pytest.MonkeyPatch
):
    split = small_store.splits["train"]
    read = split.read
    before = torch.get_num_threads()
    threads_in_loader = []

    def read_and_count(rows: np.ndarray, out: np.ndarray) -> None:
        threads_in_loader.append(torch.get_num_threads())
        read(rows, out)

    monkeypatch.setattr(split, "read", read_and_count)
    torch.set_num_threads(3)
    try:
        copy_batches(build_training_loader(small_store))
        with ThreadPoolExecutor(1) as later:
            threads_later = later.submit(torch.get_num_threads).result()
        assert threads_in_loader == [1] * 6
        assert threads_later == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def open_data(store: Store, threads: int | None = None) -> StoreData:
    return StoreData(str(store.folder), None, 8, threads, partial(Augment, crop=67), seed=0)


@pytest.mark.parametrize(
    ("cores", "encoding", "threads"),
    [(2, "raw", 2), (64, "raw", 4), (64, "jpeg", 16), (8, "jpeg", 8), (0, "raw", 1)],
)
def test_threads_by_default(
    small_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    encoding: str,
    threads: int,
):
    monkeypatch.setattr(datamodule, "count_usable_cores", lambda: cores)
    data = open_data(small_store)
    data.store.manifest["encoding"] = encoding
    assert data.threads == threads


def test_threads_that_are_asked_for(small_store: Store):
    assert open_data(small_store, threads=7).threads == 7


@pytest.fixture
def mean() -> np.ndarray:
    return np.random.default_rng(1).uniform(100, 140, (12, 12, 3)).astype(np.float32)


def build_augment(mean: np.ndarray, crop: int = 8, **options: Any) -> Augment:
    vectors = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    return Augment(mean, COLOR_STD, vectors, seed=5, crop=crop, **options)


def draw_images(count: int) -> Tensor:
    shape = (count, 12, 12, 3)
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, shape, np.uint8))


@pytest.mark.parametrize("convention", ["source", "paper"])
def test_crops_and_mirrors_against_a_loop(mean: np.ndarray, convention: str):
    augment = build_augment(mean, color_noise=0.0, convention=convention)
    images = draw_images(64)
    ids = torch.arange(64)
    crops = augment.crop_randomly(images, ids, 3).permute(0, 2, 3, 1).numpy()
    draws = draw(5, 3, ids, 9).numpy()
    for row in range(64):
        top = int(draws[row, 0] * 5)
        left = int(draws[row, 1] * 5)
        expected = images[row].numpy()[top : top + 8, left : left + 8].astype(np.float64)
        if convention == "paper":
            expected -= mean[top : top + 8, left : left + 8]
        if draws[row, 2] < 0.5:
            expected = expected[:, ::-1]
        if convention == "source":  # the center of the mean image, after mirroring
            expected = expected - mean[2:10, 2:10]
        np.testing.assert_allclose(crops[row], expected, atol=1e-4)
    assert set((draws[:, 0] * 5).astype(int)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("convention", "std", "factor"),
    [("source", COLOR_STD / 1.1, 1.1), ("paper", COLOR_STD**2 / 255, 1.0)],
)
def test_color_noise_has_the_stated_covariance(
    mean: np.ndarray, convention: str, std: np.ndarray, factor: float
):
    count = 40_000
    images = draw_images(1).expand(count, 12, 12, 3)
    noisy = build_augment(mean, crop=12, convention=convention, mirror=False)
    plain = build_augment(mean, crop=12, convention=convention, mirror=False, color_noise=0.0)
    base = plain.crop_randomly(images[:1], torch.arange(1), 0)[:, :, 0, 0] / factor
    shift = (noisy.crop_randomly(images, torch.arange(count), 0)[:, :, 0, 0] - base).numpy()
    vectors = noisy.color.T.numpy() / np.linalg.norm(noisy.color.numpy(), axis=1)
    expected = vectors * (0.1 * std) ** 2 @ vectors.T
    np.testing.assert_allclose(np.cov(shift.T), expected, rtol=0.05, atol=0.03 * expected.max())
    assert np.abs(shift.mean(0)).max() < 0.05 * np.sqrt(expected.max())


def test_crops_are_uniform():
    """Chi-square of all 33 × 33 places, within five standard deviations."""
    places = 33 * 33
    draws = draw(0, 0, torch.arange(places * 100), 2).numpy()
    top, left = (draws * 33).astype(int).T
    counts = np.bincount(top * 33 + left, minlength=places)
    assert counts.shape == (places,)
    assert counts.min() > 0
    chi_square = ((counts - 100) ** 2 / 100).sum()
    freedom = places - 1
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_half_of_the_images_are_mirrored():
    count = 100_000
    draws = draw(0, 0, torch.arange(count), 3).numpy()
    assert abs((draws[:, 2] < 0.5).mean() - 0.5) < 5 * 0.5 / np.sqrt(count)


def test_draws_depend_on_seed_epoch_and_id_alone():
    ids = torch.arange(1000)
    draws = draw(0, 0, ids, 4)
    assert torch.equal(draw(0, 0, ids.flip(0), 4), draws.flip(0))
    assert draws.min() >= 0
    assert draws.max() < 1
    for other in (draw(1, 0, ids, 4), draw(0, 1, ids, 4)):
        assert np.abs(np.corrcoef(other.flatten(), draws.flatten())[0, 1]) < 0.05
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.1


def test_ten_views_against_slices(mean: np.ndarray):
    augment = build_augment(mean)
    images = draw_images(3)
    views = augment.crop_ten_views(images).unflatten(0, (3, 10)).permute(0, 1, 3, 4, 2).numpy()
    for image, found in zip(images.numpy(), views, strict=True):
        np.testing.assert_allclose(found, slice_ten_views(image, mean[2:10, 2:10]), atol=1e-4)
    np.testing.assert_array_equal(views[:, 2], augment.crop_center(images).permute(0, 2, 3, 1))


def slice_ten_views(image: np.ndarray, mean: np.ndarray) -> Sequence[np.ndarray]:
    crops = []
    for top, left in [(0, 0), (0, 4), (2, 2), (4, 0), (4, 4)]:
        crops.append(image[top : top + 8, left : left + 8].astype(np.float32))
    mirrored = [crop[:, ::-1] for crop in crops]
    return [crop - mean for crop in crops + mirrored]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"crop": 13}, "augment.crop=13 must lie in 1..12"),
        ({"convention": "torch"}, "augment.convention=torch is unknown; choose one of source"),
        ({"color_noise": -0.1}, "augment.color_noise=-0.1 must not be negative"),
        ({"shared_by": 0}, "augment.shared_by=0 must be at least 1"),
        ({"fade": 1.5, "shared_by": 2}, r"augment.fade=1.5 must lie in 0\.\.1"),
        ({"fade": 0.5}, "augment.fade=0.5 needs augment.shared_by of at least 2"),
    ],
)
def test_wrong_values_are_named(mean: np.ndarray, options: dict[str, Any], problem: str):
    with pytest.raises(UserError, match=problem):
        build_augment(mean, **options)
