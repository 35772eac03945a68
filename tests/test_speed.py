"""What speed rests on: a compiled net that is compiled once, and steps that never wait for the device."""

import warnings

import pytest
import torch
from conftest import result, run
from torch.utils._python_dispatch import TorchDispatchMode


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_compiled_run_is_the_run(here, small, tmp_path):
    """Two epochs: a graph each to augment, train and validate, no break, the same numbers."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    for name in ("true", "false"):
        here("train.py", *small, f"compile={name}", "trainer.max_epochs=2", f"hydra.run.dir={tmp_path / name}")
    assert counters["stats"]["unique_graphs"] == 3 and not counters["graph_break"]
    assert result(tmp_path / "true")["val_counts"] == result(tmp_path / "false")["val_counts"]
    compiled, eager = weights(tmp_path / "true"), weights(tmp_path / "false")
    assert compiled.keys() == eager.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_what_can_not_be_compiled_is_refused(small):
    done = run("train.py", *small, "compile=true", "parallel=towers", "trainer.devices=2", "trainer.accelerator=cpu")
    assert done.returncode == 1 and "compile=true works with parallel=auto or ddp only" in done.stderr


class HostReads(TorchDispatchMode):
    """Counts the operations for which the host needs a value of the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def steps(here, small, folder, count: int) -> None:
    quiet = [f"trainer.limit_train_batches={count}", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1000"]
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
