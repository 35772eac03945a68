"""The benchmarks run and report what they measured; the speeds themselves are not tested."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import RunCommand, make_store, read_result
from omegaconf import OmegaConf
from rich.table import Table

from alexnet.benchmarks import end_to_end, epoch, loader, photographs
from alexnet.benchmarks.candidate import COPY, MATMUL, Candidate, Cost
from alexnet.benchmarks.run import measure_rounds
from alexnet.benchmarks.tables import (
    Measurements,
    Speed,
    build_device_table,
    build_loading_table,
    describe_ceilings,
    print_table,
)
from alexnet.data.store import Store, open_store

SPEEDS = "images per CPU-second and second"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Twelve images to train on and to validate, as large as the networks' crops."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 224, 224, 3), np.uint8)
    images = (pixels, np.arange(12) % 2)
    folder = tmp_path_factory.mktemp("data") / "store"
    return make_store(folder, ["a", "b"], train=images, val=images)


@pytest.fixture
def options(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a quick benchmark that leaves its files in `tmp_path`."""
    monkeypatch.setattr(photographs, "FOLDER", tmp_path)
    monkeypatch.setattr(epoch, "FOLDER", tmp_path)
    return [
        "net=alexnet_small",
        "batch_size=4",
        "steps=2",
        "rounds=2",
        "images=8",
        f"folder={store.folder}",
        f"hydra.run.dir={tmp_path}",
    ]


@pytest.mark.parametrize("what", ["augment", "evaluate", "end_to_end"])
def test_a_benchmark_of_the_device_reports_each_round_and_the_ceilings(
    what: str,
    options: list[str],
    run_in_process: RunCommand,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with torch.compiler.set_stance("force_eager"):  # to compile takes minutes
        run_in_process("benchmark.py", f"what={what}", *options)
    speeds = read_result(tmp_path)[SPEEDS]
    assert {MATMUL, COPY} < set(speeds)
    for rounds in speeds.values():
        assert len(rounds) == 2
        assert np.min(rounds) > 0
    assert "ceilings:" in capfd.readouterr().out


@pytest.mark.parametrize("what", ["loader", "prepare"])
def test_a_benchmark_of_loading_has_its_baseline_in_the_last_row(
    what: str, options: list[str], run_in_process: RunCommand, tmp_path: Path
) -> None:
    run_in_process("benchmark.py", f"what={what}", *options, "images=16")
    last_row = (tmp_path / "table.md").read_text().rstrip().splitlines()[-1]
    assert list(read_result(tmp_path)[SPEEDS])[-1] in last_row
    assert "1.00 ×" in last_row


def test_the_epoch_benchmark_reads_as_many_images_as_it_says(
    options: list[str],
    run_in_process: RunCommand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(epoch, "EPOCHS_PER_ROUND", {512: 1, 1024: 2})
    run_in_process("benchmark.py", "what=epoch", *options)
    assert list(read_result(tmp_path)[SPEEDS]) == ["512 images", "1,024 images"]
    repeated = open_store(tmp_path / "repeated1024")
    assert loader.read_store(repeated, batch_size=128, threads=1, epochs=2) == 2048


def test_the_first_round_is_not_counted() -> None:
    calls = []

    def work() -> int:
        calls.append("work")
        return len(sorted(range(100_000)))  # takes a time that can be measured

    measurements = measure_rounds([Candidate("candidate", work)], rounds=3)
    assert len(calls) == 4
    assert len(measurements["candidate"]) == 3


def measure(per_second: list[float]) -> list[Speed]:
    """Rounds in which half of a core was busy."""
    return [Speed(per_cpu_second=2 * speed, per_second=speed) for speed in per_second]


def list_rows(table: Table) -> list[list[str]]:
    columns = [list(column.cells) for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_a_loading_table_has_medians_spread_and_ratios() -> None:
    measurements: Measurements = {"ours": measure([300, 100, 200]), "theirs": measure([50, 50, 50])}
    rows = list_rows(build_loading_table("loader", measurements))
    assert rows[0] == ["ours", "400 ± 50%", "4.00 ×", "200", "6,400"]
    assert rows[1] == ["theirs", "100 ± 0%", "1.00 ×", "50", "1,600"]


def test_one_round_has_no_spread() -> None:
    rows = list_rows(build_loading_table("loader", {"ours": measure([100])}))
    assert rows == [["ours", "200", "1.00 ×", "100", "3,200"]]


def test_a_device_table_has_shares_of_the_ceilings_and_of_a_part() -> None:
    # Per second: 1,000 FLOP and 100 bytes are the ceilings.
    measurements: Measurements = {
        MATMUL: measure([1000, 1000]),
        COPY: measure([100, 100]),
        "with": measure([8, 4]),
        "without": measure([10, 5]),
    }
    candidates = [
        Candidate(MATMUL, int),
        Candidate(COPY, int),
        Candidate("with", int, Cost(flop=100, bytes=5), without="without"),
        Candidate("without", int),
    ]
    rows = list_rows(build_device_table("step", candidates, measurements))
    assert [row[0] for row in rows] == ["with", "without"]
    assert rows[0][2:] == ["0.80 ×", "20.0%", "60%", "30%", "arithmetic"]
    assert rows[1][2:] == ["1.00 ×", "", "", "", ""]
    assert describe_ceilings(measurements).endswith("0.00 TFLOP/s, a large copy 0.0 GB/s")


def test_a_table_is_markdown(tmp_path: Path) -> None:
    print_table(build_loading_table("loader", {"ours": measure([100, 100])}), tmp_path)
    lines = (tmp_path / "table.md").read_text().rstrip().splitlines()
    assert lines[-1].startswith("| ours")


def test_an_error_in_the_training_thread_ends_the_benchmark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(module: object, datamodule: object) -> None:
        raise ZeroDivisionError("in the thread")

    trainer = SimpleNamespace(fit=fail, callbacks=[])
    run = SimpleNamespace(trainer=trainer, module=None, data=SimpleNamespace(batch_size=4))
    monkeypatch.setattr(end_to_end, "build_run", lambda training: run)
    with pytest.raises(ZeroDivisionError, match="in the thread"):
        end_to_end.PausedTraining(OmegaConf.create(), steps=2)


def test_photographs_are_mosaics_and_kept(store: Store, tmp_path: Path) -> None:
    folder = photographs.write_photographs(store, 8, tmp_path)
    files = sorted(folder.glob("*/*/*.jpg"))
    assert len(files) == 8 + 2
    written = [file.stat().st_mtime_ns for file in files]
    photographs.write_photographs(store, 8, tmp_path)
    assert [file.stat().st_mtime_ns for file in files] == written
    mosaic = photographs.draw_mosaic(store, seed=3)
    tiles = store.splits["train"].images(np.random.default_rng(3).integers(0, 12, 4))
    assert (mosaic[:224, 224:] == tiles[1]).all()
    assert (mosaic[224:, :224] == tiles[2]).all()
