"""What speed depends on: networks that are compiled once, and steps that never wait."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunCommand, read_result, read_weights, run_command
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet.data.augment import Augment
from alexnet.data.loader import BatchSampler, Loader
from alexnet.data.store import Store

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def runs(
    run_in_process: RunCommand, small_options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A compiled run of two epochs, the same run without compiling, and the compiler's counts."""
    folder = tmp_path_factory.mktemp("runs")
    counters = torch._dynamo.utils.counters
    counters.clear()
    for compiled in ("true", "false"):
        run_in_process(
            "train.py",
            *small_options,
            f"compile={compiled}",
            "trainer.max_epochs=2",
            f"hydra.run.dir={folder / compiled}",
        )
    return {
        "compiled": folder / "true",
        "eager": folder / "false",
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": dict(counters["graph_break"]),
    }


def test_a_network_is_compiled_to_one_graph_for_training_and_one_for_validation(
    runs: dict[str, Any],
) -> None:
    augmentation_graphs = 2 if torch.cuda.is_available() else 0  # compiled on a GPU only
    assert runs["graphs"] == 2 + augmentation_graphs
    assert not runs["breaks"]


def test_a_compiled_run_has_the_results_of_an_eager_one(runs: dict[str, Any]) -> None:
    counts = read_result(runs["compiled"])["val_counts"]
    assert counts == read_result(runs["eager"])["val_counts"]


def test_a_compiled_run_has_the_weights_of_an_eager_one(runs: dict[str, Any]) -> None:
    compiled = read_weights(runs["compiled"])
    eager = read_weights(runs["eager"])
    assert compiled.keys() == eager.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_compiling_is_refused_with_towers(small_options: list[str]) -> None:
    finished = run_command(
        "train.py",
        *small_options,
        "compile=true",
        "parallel=towers",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
    )
    assert finished.returncode == 1
    assert "compile=true works with parallel=auto or ddp only" in finished.stderr


def build_augment() -> Augment:
    """An augmentation with random statistics, the same each time."""
    rng = np.random.default_rng(1)
    return Augment(
        mean=rng.uniform(0, 255, (40, 40, 3)),
        color_std=np.full(3, 30.0),
        color_vectors=np.linalg.qr(rng.normal(size=(3, 3)))[0],
        crop=32,
        convention="paper",
    )


def test_a_compiled_augmentation_is_the_eager_one() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), np.uint8)
    images = torch.from_numpy(pixels)
    ids = torch.arange(5)
    eager = build_augment()
    compiled = build_augment()
    compiled.compile()
    for epoch in range(2):
        expected = eager.crop_randomly(images, ids, epoch)
        actual = compiled.crop_randomly(images, ids, epoch)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
        assert actual.stride() == expected.stride()


class HostReads(TorchDispatchMode):
    """Counts the operations for which the host needs a value from the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        ):
            self.count += 1
        return func(*args, **(kwargs or {}))


def train_steps(
    run_in_process: RunCommand, options: list[str], folder: Path, *, steps: int
) -> None:
    """Trains an epoch of so many steps that logs nothing before its end."""
    run_in_process(
        "train.py",
        *options,
        f"trainer.limit_train_batches={steps}",
        "trainer.limit_val_batches=1",
        "trainer.log_every_n_steps=1000",
        "trainer.max_epochs=1",
        f"hydra.run.dir={folder}",
    )


def test_a_step_reads_no_value_from_the_device(
    run_in_process: RunCommand, small_options: list[str], tmp_path: Path
) -> None:
    reads = []
    for steps in (2, 6):
        with HostReads() as counter:
            train_steps(run_in_process, small_options, tmp_path / f"{steps}", steps=steps)
        reads.append(counter.count)
    assert reads[0] == reads[1]
    assert reads[0] > 0  # at the end of the epoch


@NEEDS_GPU
def test_a_step_never_waits_for_the_gpu(
    run_in_process: RunCommand, small_options: list[str], tmp_path: Path
) -> None:
    waits = []
    torch.cuda.set_sync_debug_mode("warn")
    for number, steps in enumerate((2, 2, 6)):  # the first warms up
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always")
            train_steps(run_in_process, small_options, tmp_path / f"{number}", steps=steps)
        waits.append(sum("synchronizing" in str(warning.message) for warning in recorded))
    torch.cuda.set_sync_debug_mode("default")
    assert waits[1] == waits[2]


@NEEDS_GPU
def test_uploads_during_the_work_bring_the_same_bytes(small_store: Store) -> None:
    split = small_store.splits["val"]
    sampler = BatchSampler(images=len(split), batch_size=96, train=False)
    plain = Loader(split, sampler, 2, torch.device("cpu"))
    uploaded = Loader(split, sampler, 2, torch.device("cuda"))
    for expected, actual in zip(plain, uploaded, strict=True):
        work = torch.randn(2000, 2000, device="cuda") @ torch.randn(2000, 2000, device="cuda")
        for expected_tensor, actual_tensor in zip(expected, actual, strict=True):
            assert torch.equal(actual_tensor.cpu(), expected_tensor)
        assert work.isfinite().all()
        assert plain.position == uploaded.position
