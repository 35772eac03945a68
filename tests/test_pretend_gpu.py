"""Whole runs on a device that is not the host: nothing of the two is mixed, and the numbers are the CPU's."""

import json
from pathlib import Path

import pytest
from conftest import ON, losses, result, run
from torch.utils import backend_registration

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch can't have a device in Python", allow_module_level=True)


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory) -> Path:
    """The run of by_form("one"), in two parts."""
    folder = tmp_path_factory.mktemp("pretend") / "run"
    pretend(
        "train.py",
        *small,
        "data.batch_size=12",
        "trainer.max_epochs=1",
        ON,
        f"hydra.run.dir={folder}",
    )
    pretend("train.py", f"resume={folder}", "trainer.max_epochs=2")
    return folder


def pretend(*command: str) -> None:
    done = run("tests/pretend_gpu.py", *command)
    assert done.returncode == 0, done.stderr


def test_it_trains_and_goes_on_as_a_cpu_does(trained, by_form):
    assert losses(trained) == pytest.approx(losses(by_form("one")), rel=1e-5)
    assert result(trained)["val_counts"] == result(by_form("one"))["val_counts"]


def test_it_evaluates_as_a_cpu_does(trained, here, tmp_path):
    pretend(
        "evaluate.py", f"run={trained}", "device=pretend", f"hydra.run.dir={tmp_path / 'there'}"
    )
    here("evaluate.py", f"run={trained}", "device=cpu", f"hydra.run.dir={tmp_path / 'here'}")
    (there,), (alone,) = (result(tmp_path / name)["each"] for name in ("there", "here"))
    for view in ("center crop", "ten views"):
        assert there[view]["top1_error"] == alone[view]["top1_error"]
        assert there[view]["loss"] == pytest.approx(alone[view]["loss"], rel=1e-6)


def test_its_neighbors_and_its_report(trained, here, tmp_path):
    found = []
    neighbors = ["evaluate.py", f"run={trained}", "what=neighbors"]
    for door, device in ((pretend, "pretend"), (here, "cpu")):
        door(*neighbors, f"device={device}")
        file = trained / "checkpoints" / "neighbors.json"
        found.append(
            [
                [near["image"] for near in query["nearest"]]
                for query in json.loads(file.read_text())["queries"]
            ]
        )
    assert found[0] == found[1]
    pretend("report.py", f"runs={trained}", "device=pretend", f"hydra.run.dir={tmp_path}")
    assert (tmp_path / "report.html").stat().st_size > 10_000
