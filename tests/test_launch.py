"""How processes are started and stopped: torchrun on two machines, SLURM, signals, sweeps."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import (
    ROOT,
    read_events,
    read_losses,
    read_result,
    read_run_facts,
    run_command,
)

from alexnet.errors import UserError
from alexnet.run_folder import find_checkpoint
from alexnet.training.train import explain_lost_process

TWO_EPOCHS = ["data.batch_size=12", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
SAVE_OFTEN = "callbacks.last.minutes=0"  # at every logging interval
LOST = "another process of this run died, or was silent"


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    """Until the file exists; fails if the process stops before."""
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """The output of a process that must end with this exit code."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def run_ip(*words: str) -> int:
    return subprocess.run(["ip", *words], capture_output=True).returncode


@pytest.fixture
def two_machines() -> Iterator[list[str]]:
    """Two network namespaces, joined by a cable."""
    names = [f"alexnet{os.getpid()}{side}" for side in "ab"]
    first, second = names
    try:
        if run_ip("netns", "add", first) != 0:
            pytest.skip("network namespaces need root and iproute2")
        run_ip("netns", "add", second)
        ends = ["netns", first, "type", "veth", "peer", "name", "cable", "netns", second]
        run_ip("link", "add", "cable", *ends)
        for number, name in enumerate(names, 1):
            run_ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            run_ip("-n", name, "link", "set", "lo", "up")
            run_ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            run_ip("netns", "del", name)


def set_cable(machine: str, state: str) -> None:
    subprocess.run(["ip", "-n", machine, "link", "set", "cable", state], check=True)


def start_on_both(machines: list[str], *options: str) -> list[subprocess.Popen[str]]:
    """torchrun with one process on each machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--master-addr=10.77.0.1", "--master-port=29511"]
    processes = []
    for rank, name in enumerate(machines):
        command = ["ip", "netns", "exec", name, *torchrun, f"--node-rank={rank}", "train.py"]
        processes.append(start(*command, *options, GLOO_SOCKET_IFNAME="cable"))
    return processes


def test_two_machines_train_as_one_and_a_cut_cable_stops_both(
    two_machines, small_options, run_in_process, tmp_path
):
    alone = tmp_path / "alone"
    both = tmp_path / "both"
    options = [*small_options, "trainer.max_epochs=3", "trainer.accelerator=cpu"]
    run_in_process("train.py", *options, f"hydra.run.dir={alone}")
    options += [f"hydra.run.dir={both}", "trainer.num_nodes=2", "parallel.timeout=8", SAVE_OFTEN]
    processes = start_on_both(two_machines, *options)
    wait_for(both / "checkpoints" / "previous.ckpt", processes[0])
    set_cable(two_machines[0], "down")
    cut = time.monotonic()
    for process in processes:
        assert LOST in finish(process, code=1)
    assert time.monotonic() - cut < 40
    assert not (both / "result.json").exists()

    set_cable(two_machines[0], "up")
    for process in start_on_both(two_machines, f"resume={both}"):
        finish(process)
    assert read_losses(both) == pytest.approx(read_losses(alone), rel=1e-5)
    assert read_result(both)["val_counts"] == read_result(alone)["val_counts"]


@pytest.mark.parametrize(
    "text",
    ["Application timeout caused pair closure", "[…/gloo/tcp/pair.cc:538] Connection closed"],
)
def test_every_error_of_gloo_is_known(text, tmp_path):
    """A cut cable gives the first when two messages were on their way, one time in ten."""
    with pytest.raises(UserError, match=LOST), explain_lost_process(tmp_path):
        raise RuntimeError(text)


def test_other_errors_pass(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"), explain_lost_process(tmp_path):
        raise RuntimeError("out of memory")


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "2",
    "SLURM_NODELIST": "localhost",
    "SLURM_NNODES": "1",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NODEID": "0",
    "MASTER_PORT": "29513",
}


def start_slurm_tasks(*options: str, **environment: str) -> list[subprocess.Popen[str]]:
    """The two tasks that srun would start."""
    tasks = []
    for rank in ("0", "1"):
        step = {"SLURM_STEP_ID": "0", "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        variables = {**SLURM, **step, **environment}
        tasks.append(start(sys.executable, "train.py", *options, **variables))
    return tasks


def test_slurm_requeues_the_job_and_it_resumes(small_options, run_by_strategy, tmp_path):
    folder = tmp_path / "run"
    calls = tmp_path / "calls"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $* >> {calls}\n")
    scontrol.chmod(0o755)
    options = [*small_options, *TWO_EPOCHS, "trainer.devices=2", SAVE_OFTEN]
    options += [f"hydra.run.dir={folder}", "resume=auto"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    tasks = start_slurm_tasks(*options, PATH=path)
    wait_for(folder / "checkpoints" / "last.ckpt", tasks[0])
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    output = finish(tasks[0], code=128 + signal.SIGUSR1)
    tasks[1].communicate(timeout=60)
    assert "SIGUSR1 after step" in output
    assert calls.read_text().split() == ["requeue", "77"]
    assert not (folder / "result.json").exists()

    for task in start_slurm_tasks(*options, PATH=path):
        finish(task)
    expected = run_by_strategy("two")
    assert read_losses(folder) == read_losses(expected)
    assert read_result(folder)["val_counts"] == read_result(expected)["val_counts"]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}
# Options, the variables of whoever starts the processes, and what the line says.
REFUSED = [
    ("trainer.num_nodes=2 data.batch_size=8", {}, "start it by torchrun or srun on each of 2"),
    ("trainer.devices=2", SLURM, "starts them by srun"),
    ("trainer.devices=3", SLURM, "SLURM starts 2 processes, but trainer.devices=3 on trainer.num"),
    ("trainer.devices=2 seed=1", TORCHRUN, "2 processes of torchrun need one folder: give hydra"),
    ("trainer.devices=3 parallel=towers", {}, "devices in groups of 2, but there are 3"),
    ("trainer.devices=2 parallel=hybrid trainer.precision=16-mixed", {}, "use bf16-mixed"),
    ("+optimizer.fused=true", {}, "optimizer.fused is not an option"),
    ("-m seed=1,2", SLURM, "a sweep starts its processes by itself"),
]


@pytest.mark.parametrize(("options", "environment", "message"), REFUSED)
def test_a_wrong_start_is_refused_before_any_process_starts(
    options, environment, message, small_options, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    overrides = [*options.split(), *small_options, "trainer.accelerator=cpu"]
    finished = run_command("train.py", *overrides)
    assert finished.returncode == 1, finished.stderr
    (line,) = finished.stderr.splitlines()
    assert message in line


def test_sigterm_saves_on_every_device(small_options, run_by_strategy, tmp_path):
    options = [*small_options, *TWO_EPOCHS, "trainer.devices=2", SAVE_OFTEN]
    process = start(sys.executable, "train.py", *options, f"hydra.run.dir={tmp_path}")
    wait_for(tmp_path / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM after step" in finish(process, code=128 + signal.SIGTERM)
    finished = run_command("train.py", f"resume={tmp_path}")
    assert finished.returncode == 0, finished.stderr
    assert read_losses(tmp_path) == read_losses(run_by_strategy("two"))


def list_finished_jobs(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob("*/result.json"))


def test_a_sweep_over_device_counts_from_any_folder(small_options, run_by_strategy, tmp_path):
    folder = tmp_path / "sweep"
    options = [*small_options, *TWO_EPOCHS, "trainer.devices=2,1,2", f"hydra.sweep.dir={folder}"]
    finished = run_command(str(ROOT / "train.py"), "-m", *options, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    jobs = list_finished_jobs(folder)
    assert [read_run_facts(job)["devices"] for job in jobs] == [2, 1, 2]
    assert {file.name for file in tmp_path.iterdir()} == {"sweep"}
    expected = read_losses(run_by_strategy("one"))
    for job in jobs:
        assert read_losses(job) == pytest.approx(expected, rel=1e-5)


def test_a_failing_rank_stops_its_job_and_no_other(small_options, tmp_path):
    options = [*small_options, "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    options += ["trainer.devices=2", f"hydra.sweep.dir={tmp_path}"]
    options += ["+callbacks.fail._target_=failing.FailingRank", "+callbacks.fail.rank=1,9"]
    python_path = f"{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"
    process = start(sys.executable, "train.py", "-m", *options, PYTHONPATH=python_path)
    assert "0 failed with exit code" in finish(process, code=1)
    assert [job.name for job in list_finished_jobs(tmp_path)] == ["1"]


def test_optuna_gives_every_rank_the_same_values(small_options, tmp_path):
    """A run whose ranks differ is ended by the callback that compares them."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    options = [*small_options, "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    options += ["trainer.devices=2", f"hydra.sweep.dir={tmp_path}", "hydra/sweeper=optuna"]
    options += ["hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    options += ["optimizer.lr=tag(log, interval(0.0001, 0.01))"]
    finished = run_command("train.py", "-m", *options)
    assert finished.returncode == 0, finished.stderr
    learning_rates = set()
    for job in list_finished_jobs(tmp_path):
        learning_rates.add(read_events(job).Scalars("lr-SGD/weights")[0].value)
    assert len(learning_rates) == 2


def test_sigterm_stops_a_sweep_and_its_processes(small_options, tmp_path):
    options = [*small_options, "trainer.max_epochs=2", "trainer.accelerator=cpu"]
    options += ["trainer.devices=2", "seed=0,1", SAVE_OFTEN, f"hydra.sweep.dir={tmp_path}"]
    command = [sys.executable, "train.py", "-m", *options]
    process = start(*command)
    wait_for(tmp_path / "0" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    finish(process, code=128 + signal.SIGTERM)
    assert not list_finished_jobs(tmp_path)
    assert find_checkpoint(tmp_path / "0", "last")
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout
    assert not left.split()

    finish(start(*command))
    jobs = list_finished_jobs(tmp_path)
    assert [read_result(job)["steps"] for job in jobs] == [12, 12]
