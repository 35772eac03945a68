"""BatchSampler, batches and augmentation."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

from alexnet import rng
from alexnet.data import datamodule
from alexnet.data.augment import Augment
from alexnet.data.loader import BatchSampler, Loader


def draws_of(seed: int, epoch: int, ids: torch.Tensor, count: int) -> torch.Tensor:
    return rng.draw_uniform(rng.make_keys(seed, epoch, ids), 0, count)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_covers_each_image_once(small_store, world_size):
    split, seen = small_store.splits["val"], []
    for rank in range(world_size):
        for batch in Loader(split, BatchSampler(1003, 96, 0, rank, world_size, train=False)):
            seen += batch.ids[batch.weights > 0].tolist()
    assert sorted(seen) == list(range(1003))


def test_training_batches_are_the_same_for_any_number_of_ranks():
    def epoch(world_size: int, number: int) -> list[np.ndarray]:
        orders = [
            BatchSampler(1000, 96, 7, rank, world_size, train=True) for rank in range(world_size)
        ]
        for order in orders:
            order.set_epoch(number)
        return [
            np.concatenate(parts)
            for parts in zip(*(order.batch_ids() for order in orders), strict=True)
        ]

    np.testing.assert_array_equal(epoch(1, 3), epoch(3, 3))
    ids = np.concatenate(epoch(1, 3))
    assert len(ids) == 960 == len(set(ids.tolist()))
    assert not np.array_equal(epoch(1, 3), epoch(1, 4))


def test_loader_gives_the_stores_bytes_and_goes_on_where_it_was(small_store):
    def batches(loader):
        return [(b.images.clone(), b.labels, b.ids) for b in loader]

    split = small_store.splits["train"]
    loader = Loader(split, BatchSampler(48, 8, 0, 0, 1, train=True))
    first = batches(loader)
    for images, labels, ids in first:
        expected = np.empty((8, 72, 72, 3), np.uint8)
        split.read(ids.numpy(), expected)
        np.testing.assert_array_equal(images.numpy(), expected)
        np.testing.assert_array_equal(labels.numpy(), split.labels[ids.numpy()])
    iterator = iter(loader)
    next(iterator), next(iterator)
    resumed = Loader(split, BatchSampler(48, 8, 0, 0, 1, train=True))
    resumed.load_state_dict(loader.state_dict())
    assert torch.equal(
        torch.stack([b[2] for b in batches(resumed)]), torch.stack([b[2] for b in first[2:]])
    )
    assert len(batches(resumed)) == 6


def test_batch_size_must_divide():
    with pytest.raises(ValueError, match=r"data.batch_size=128 .* 3 devices: take 126 or 129"):
        BatchSampler(1000, 128, 0, 0, 3, train=True)


def augment(size: int = 12, **kwargs) -> tuple[Augment, np.ndarray]:
    rng = np.random.default_rng(1)
    mean = rng.uniform(100, 140, (size, size, 3)).astype(np.float32)
    vectors = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return Augment(mean, np.array([20.0, 37.0, 122.0]), vectors, 5, **({"crop": 8} | kwargs)), mean


def images(n: int, size: int = 12) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(0, 256, (n, size, size, 3), np.uint8))


@pytest.mark.parametrize("convention", ["source", "paper"])
def test_crops_and_mirrors_against_a_loop(convention):
    aug, mean = augment(color_noise=0.0, convention=convention)
    x, ids = images(64), torch.arange(64)
    out = aug.train(x, ids, 3).permute(0, 2, 3, 1).numpy()
    draws = draws_of(5, 3, ids, 9).numpy()
    for i in range(64):
        top, left = int(draws[i, 0] * 5), int(draws[i, 1] * 5)
        patch = x[i].numpy()[top : top + 8, left : left + 8].astype(np.float64)
        if convention == "source":  # mirrored, then the center of the mean image
            patch = (patch[:, ::-1] if draws[i, 2] < 0.5 else patch) - mean[2:10, 2:10]
        else:
            patch -= mean[top : top + 8, left : left + 8]
            patch = patch[:, ::-1] if draws[i, 2] < 0.5 else patch
        np.testing.assert_allclose(out[i], patch, atol=1e-4)
    assert {int(d * 5) for d in draws[:, 0]} == {0, 1, 2, 3, 4}


def test_color_noise_has_the_stated_covariance():
    n = 40_000
    x = images(1).expand(n, 12, 12, 3)
    std = np.array([20, 37, 122.0])
    for convention, spread in (("source", std / 1.1), ("paper", std**2 / 255)):
        aug, _ = augment(convention=convention, mirror=False, crop=12)
        quiet, _ = augment(convention=convention, mirror=False, crop=12, color_noise=0.0)
        factor = 1.1 if convention == "source" else 1.0
        still = quiet.train(x[:1], torch.arange(1), 0)[:, :, 0, 0] / factor
        shift = (aug.train(x, torch.arange(n), 0)[:, :, 0, 0] - still).numpy()
        vectors = aug.color.T.numpy() / np.linalg.norm(aug.color.numpy(), axis=1)
        expected = vectors * (0.1 * spread) ** 2 @ vectors.T
        np.testing.assert_allclose(np.cov(shift.T), expected, rtol=0.05, atol=0.03 * expected.max())
        assert np.abs(shift.mean(0)).max() < 0.05 * np.sqrt(expected.max())


def test_crops_are_uniform_and_half_are_mirrored():
    """Chi-square of all 33 × 33 places, within five standard deviations."""
    n = 33 * 33 * 100
    draws = draws_of(0, 0, torch.arange(n), 9).numpy()
    places = (draws[:, 0] * 33).astype(int) * 33 + (draws[:, 1] * 33).astype(int)
    counts = np.bincount(places, minlength=33 * 33)
    assert counts.shape == (33 * 33,) and counts.min() > 0
    chi2, freedom = ((counts - 100) ** 2 / 100).sum(), 33 * 33 - 1
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)
    assert abs((draws[:, 2] < 0.5).mean() - 0.5) < 5 * 0.5 / np.sqrt(n)


def test_draws_depend_on_seed_epoch_and_id_alone():
    ids = torch.arange(1000)
    draws = draws_of(0, 0, ids, 4)
    assert torch.equal(draws_of(0, 0, ids.flip(0), 4), draws.flip(0))
    assert draws.min() >= 0 and draws.max() < 1
    for other in (draws_of(1, 0, ids, 4), draws_of(0, 1, ids, 4)):
        assert np.abs(np.corrcoef(other.flatten(), draws.flatten())[0, 1]) < 0.05
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.1


def test_ten_views_against_slices():
    aug, mean = augment()
    x = images(3)
    views = aug.ten_views(x).unflatten(0, (3, 10)).permute(0, 1, 3, 4, 2).numpy()
    corners = [(0, 0), (0, 4), (2, 2), (4, 0), (4, 4)]
    for i in range(3):
        plain = [x[i].numpy()[a : a + 8, b : b + 8].astype(np.float32) for a, b in corners]
        expected = [p - mean[2:10, 2:10] for p in plain] + [
            p[:, ::-1] - mean[2:10, 2:10] for p in plain
        ]
        np.testing.assert_allclose(views[i], expected, atol=1e-4)
    np.testing.assert_array_equal(views[:, 2], aug.center(x).permute(0, 2, 3, 1).numpy())


def test_wrong_values_are_named():
    for wrong in ({"crop": 13}, {"convention": "torch"}, {"color_noise": -0.1}):
        with pytest.raises(ValueError, match=f"augment.{next(iter(wrong))}"):
            augment(**wrong)


def test_only_its_threads_work_alone(small_store, monkeypatch):
    split, before, seen = small_store.splits["train"], torch.get_num_threads(), []
    read = split.read
    monkeypatch.setattr(
        split, "read", lambda *args: (seen.append(torch.get_num_threads()), read(*args))
    )
    torch.set_num_threads(3)
    try:
        assert (
            len(list(Loader(split, BatchSampler(48, 8, 0, 0, 1, train=True), threads=2))) == 6
            and seen == [1] * 6
        )
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "cores, encoding, threads", [(2, "raw", 2), (64, "raw", 4), (64, "jpeg", 16), (8, "jpeg", 8)]
)
def test_threads_by_default(small_store, monkeypatch, cores, encoding, threads):
    monkeypatch.setattr(datamodule, "count_usable_cores", lambda: cores)
    data = datamodule.StoreData(
        str(small_store.folder), None, 8, None, partial(Augment, crop=67), 0
    )
    data.store.manifest["encoding"] = encoding
    assert data.threads == threads
