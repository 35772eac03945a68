"""What speed rests on: a compiled net that is compiled once, and steps that never wait for the device."""

import warnings

import numpy as np
import pytest
import torch
from conftest import result, run
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet.data.augment import Augment
from alexnet.data.loader import BatchSampler, Loader


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_compiled_run_is_the_run(here, small, tmp_path):
    """Two epochs: a graph each to train and to validate, no break, the same numbers."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    for name in ("true", "false"):
        here(
            "train.py",
            *small,
            f"compile={name}",
            "trainer.max_epochs=2",
            f"hydra.run.dir={tmp_path / name}",
        )
    assert (
        counters["stats"]["unique_graphs"] == 2 + 2 * torch.cuda.is_available()
        and not counters["graph_break"]
    )
    assert result(tmp_path / "true")["val_counts"] == result(tmp_path / "false")["val_counts"]
    compiled, eager = weights(tmp_path / "true"), weights(tmp_path / "false")
    assert compiled.keys() == eager.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_what_can_not_be_compiled_is_refused(small):
    done = run(
        "train.py",
        *small,
        "compile=true",
        "parallel=towers",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
    )
    assert (
        done.returncode == 1 and "compile=true works with parallel=auto or ddp only" in done.stderr
    )


def test_compiled_augmentation_is_the_augmentation():
    rng = np.random.default_rng(0)
    images, ids = torch.from_numpy(rng.integers(0, 256, (5, 40, 40, 3), np.uint8)), torch.arange(5)
    mean, std, vectors = (
        rng.uniform(0, 255, (40, 40, 3)),
        np.full(3, 30.0),
        np.linalg.qr(rng.normal(size=(3, 3)))[0],
    )
    eager, compiled = (Augment(mean, std, vectors, crop=32, convention="paper") for _ in range(2))
    compiled.compile()
    for epoch in range(2):
        expected, actual = (augment.crop_randomly(images, ids, epoch) for augment in (eager, compiled))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
        assert actual.stride() == expected.stride()


class HostReads(TorchDispatchMode):
    """Counts the operations for which the host needs a value of the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        )
        return func(*args, **(kwargs or {}))


def steps(here, small, folder, count: int) -> None:
    quiet = [
        f"trainer.limit_train_batches={count}",
        "trainer.limit_val_batches=1",
        "trainer.log_every_n_steps=1000",
    ]
    here("train.py", *small, *quiet, "trainer.max_epochs=1", f"hydra.run.dir={folder / str(count)}")


def test_a_step_reads_nothing_back(here, small, tmp_path):
    reads = []
    for count in (2, 6):
        with HostReads() as seen:
            steps(here, small, tmp_path, count)
        reads.append(seen.count)
    assert reads[0] == reads[1] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_never_waits_for_the_gpu(here, small, tmp_path):
    waits = []
    torch.cuda.set_sync_debug_mode("warn")
    for count in (2, 2, 6):  # the first warms up
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            steps(here, small, tmp_path / str(len(waits)), count)
        waits.append(sum("synchronizing" in str(warning.message) for warning in seen))
    torch.cuda.set_sync_debug_mode("default")
    assert waits[1] == waits[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_uploads_beside_the_work_bring_the_same_bytes(small_store):
    split = small_store.splits["val"]
    order = BatchSampler(images=1003, batch_size=96, train=False)
    plain, uploaded = (Loader(split, order, 2, torch.device(name)) for name in ("cpu", "cuda"))
    for expected, actual in zip(plain, uploaded, strict=True):
        busy = torch.randn(2000, 2000, device="cuda") @ torch.randn(2000, 2000, device="cuda")
        assert (
            all(torch.equal(a.cpu(), b) for a, b in zip(actual, expected, strict=True))
            and busy.isfinite().all()
        )
        assert plain.position == uploaded.position
