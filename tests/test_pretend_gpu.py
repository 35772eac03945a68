"""Whole runs on a device that is not the host: nothing mixes the two, and the numbers agree."""

import json
from pathlib import Path

import pytest
from conftest import ON_ACCELERATOR, read_losses, read_result, run_command
from torch.utils import backend_registration

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch can't have a device made in Python", allow_module_level=True)


def run_on_pretend_gpu(*command: str) -> None:
    finished = run_command("tests/pretend_gpu.py", *command)
    assert finished.returncode == 0, finished.stderr


def read_neighbors(folder: Path) -> list[list[int]]:
    """The nearest training images of each query."""
    found = json.loads((folder / "checkpoints" / "neighbors.json").read_text())
    nearest = []
    for query in found["queries"]:
        nearest.append([image["image"] for image in query["nearest"]])
    return nearest


@pytest.fixture(scope="module")
def trained(small_options, tmp_path_factory) -> Path:
    """The run of run_by_strategy("one"), resumed after its first epoch."""
    folder = tmp_path_factory.mktemp("pretend") / "run"
    options = [*small_options, "data.batch_size=12", "trainer.max_epochs=1", ON_ACCELERATOR]
    run_on_pretend_gpu("train.py", *options, f"hydra.run.dir={folder}")
    run_on_pretend_gpu("train.py", f"resume={folder}", "trainer.max_epochs=2")
    return folder


def test_training_and_resuming_give_the_numbers_of_a_cpu(trained, run_by_strategy):
    on_cpu = run_by_strategy("one")
    assert read_losses(trained) == pytest.approx(read_losses(on_cpu), rel=1e-5)
    assert read_result(trained)["val_counts"] == read_result(on_cpu)["val_counts"]


def test_evaluation_gives_the_numbers_of_a_cpu(trained, run_in_process, tmp_path):
    run = f"run={trained}"
    device_folder = tmp_path / "device"
    cpu_folder = tmp_path / "cpu"
    device_options = ["device=pretend", f"hydra.run.dir={device_folder}"]
    run_on_pretend_gpu("evaluate.py", run, *device_options)
    run_in_process("evaluate.py", run, "device=cpu", f"hydra.run.dir={cpu_folder}")
    (on_device,) = read_result(device_folder)["each"]
    (on_cpu,) = read_result(cpu_folder)["each"]
    for view in ("center crop", "ten views"):
        assert on_device[view]["top1_error"] == on_cpu[view]["top1_error"]
        assert on_device[view]["loss"] == pytest.approx(on_cpu[view]["loss"], rel=1e-6)


def test_the_nearest_images_are_those_of_a_cpu(trained, run_in_process):
    options = [f"run={trained}", "what=neighbors"]
    run_on_pretend_gpu("evaluate.py", *options, "device=pretend")
    on_device = read_neighbors(trained)
    run_in_process("evaluate.py", *options, "device=cpu")
    assert on_device == read_neighbors(trained)


def test_the_report_is_written(trained, tmp_path):
    run_on_pretend_gpu(
        "report.py", f"runs={trained}", "device=pretend", f"hydra.run.dir={tmp_path}"
    )
    assert (tmp_path / "report.html").stat().st_size > 10_000
