"""How processes are started and ended: torchrun on two machines, SLURM, signals, sweeps."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, board, losses, result, run, run_facts

from alexnet.run_folder import find_checkpoint
from alexnet.training.train import lost_process


def start(*command: str, **env: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | env, **pipes)  # type: ignore[call-overload]


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.fixture
def two_machines() -> Iterator[list[str]]:
    """Two network namespaces, joined by a cable."""
    names = [f"alexnet{os.getpid()}{side}" for side in "ab"]

    def ip(*words: str) -> int:
        return subprocess.run(["ip", *words], capture_output=True).returncode

    try:
        if ip("netns", "add", names[0]):
            pytest.skip("network namespaces need root and iproute2")
        ip("netns", "add", names[1])
        ip(
            "link",
            "add",
            "cable",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            names[1],
        )
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def on_both(machines: list[str], *options: str) -> list[subprocess.Popen[str]]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    place = ["--master-addr=10.77.0.1", "--master-port=29511"]
    return [
        start(
            *(
                "ip",
                "netns",
                "exec",
                name,
                *torchrun,
                f"--node-rank={i}",
                *place,
                "train.py",
                *options,
            ),
            GLOO_SOCKET_IFNAME="cable",
        )
        for i, name in enumerate(machines)
    ]


def test_two_machines_are_one_and_a_cut_cable_ends_both(two_machines, small, here, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    options = [*small, "trainer.max_epochs=3", "trainer.accelerator=cpu"]
    here("train.py", *options, f"hydra.run.dir={alone}")
    spread = [
        f"hydra.run.dir={both}",
        "trainer.num_nodes=2",
        "parallel.timeout=8",
        "callbacks.last.minutes=0",
    ]
    runs = on_both(two_machines, *options, *spread)
    wait_for(both / "checkpoints" / "previous.ckpt", runs[0])
    subprocess.run(["ip", "-n", two_machines[0], "link", "set", "cable", "down"], check=True)
    cut = time.monotonic()
    for process in runs:
        output = process.communicate(timeout=60)[0]
        assert (
            process.returncode == 1 and "another process of this run ended, or was silent" in output
        ), output
    assert time.monotonic() - cut < 40 and not (both / "result.json").exists()
    subprocess.run(["ip", "-n", two_machines[0], "link", "set", "cable", "up"], check=True)
    for process in on_both(two_machines, f"resume={both}"):
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
    assert losses(both) == pytest.approx(losses(alone), rel=1e-5)
    assert result(both)["val_counts"] == result(alone)["val_counts"]


@pytest.mark.parametrize(
    "text",
    ["Application timeout caused pair closure", "[…/gloo/tcp/pair.cc:538] Connection closed"],
)
def test_every_error_of_gloo_is_known(text, tmp_path):
    """A cut cable gives the first when two messages were on their way, one time in ten."""
    with (
        pytest.raises(ConnectionError, match="another process of this run ended"),
        lost_process(tmp_path),
    ):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="out of memory"), lost_process(tmp_path):
        raise RuntimeError("out of memory")


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "2",
    "SLURM_NODELIST": "localhost",
}
SLURM |= {
    "SLURM_NNODES": "1",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NODEID": "0",
    "MASTER_PORT": "29513",
}


def srun(*options: str, **env: str) -> list[subprocess.Popen[str]]:
    """The two tasks that srun would start."""
    ranks = [
        {"SLURM_STEP_ID": "0", "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)
    ]
    return [start(sys.executable, "train.py", *options, **SLURM, **rank, **env) for rank in ranks]


def test_slurm_queues_the_job_again_and_it_goes_on(small, by_form, tmp_path):
    folder, called = tmp_path / "run", tmp_path / "called"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $* >> {called}\n")
    scontrol.chmod(0o755)
    options = [
        *small,
        "data.batch_size=12",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
    ]
    options += ["callbacks.last.minutes=0", f"hydra.run.dir={folder}", "resume=auto"]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    tasks = srun(*options, **path)
    wait_for(folder / "checkpoints" / "last.ckpt", tasks[0])
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    outputs = [task.communicate(timeout=60)[0] for task in tasks]
    assert tasks[0].returncode == 128 + signal.SIGUSR1 and "SIGUSR1 after step" in outputs[0], (
        outputs[0]
    )
    assert called.read_text().split() == ["requeue", "77"] and not (folder / "result.json").exists()
    again = srun(*options, **path)
    outputs = [task.communicate(timeout=120)[0] for task in again]
    assert [task.returncode for task in again] == [0, 0], outputs
    assert losses(folder) == losses(by_form("two"))
    assert result(folder)["val_counts"] == result(by_form("two"))["val_counts"]


REFUSED = {
    "trainer.num_nodes=2 data.batch_size=8": (
        {},
        "start it by torchrun or srun on each of 2 machines",
    ),
    "trainer.devices=2": (SLURM, "starts them by srun"),
    "trainer.devices=3": (
        SLURM,
        "SLURM starts 2 processes, but trainer.devices=3 on trainer.num_nodes=1 need 3",
    ),
    "trainer.devices=2 seed=1": (
        {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"},
        "2 processes of torchrun need one folder: give hydra.run.dir",
    ),
    "trainer.devices=3 parallel=towers": ({}, "devices in groups of 2, but there are 3"),
    "trainer.devices=2 parallel=hybrid trainer.precision=16-mixed": ({}, "take bf16-mixed"),
    "trainer.devices=2 parallel=fsdp +optimizer.fused=true": (
        {},
        "no fused step for spread parameters",
    ),
    "-m seed=1,2": (SLURM, "a sweep starts its processes by itself"),
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_can_not_be_started_is_refused_before_any_process_starts(options, small, monkeypatch):
    env, said = REFUSED[options]
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    done = run("train.py", *options.split(), *small, "trainer.accelerator=cpu")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and said in line, done.stderr


def test_sigterm_saves_on_every_device(small, by_form, tmp_path):
    options = [
        *small,
        "data.batch_size=12",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
    ]
    process = start(
        sys.executable,
        "train.py",
        *options,
        f"hydra.run.dir={tmp_path}",
        "callbacks.last.minutes=0",
    )
    wait_for(tmp_path / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 143 and "SIGTERM after step" in output, output
    done = run("train.py", f"resume={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == losses(by_form("two"))


def jobs(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob("*/result.json"))


def test_a_sweep_of_device_counts_from_any_folder(small, by_form, tmp_path):
    options = [
        *small,
        "data.batch_size=12",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "trainer.devices=2,1,2",
    ]
    done = run(
        str(ROOT / "train.py"),
        "-m",
        *options,
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [run_facts(job)["devices"] for job in jobs(tmp_path / "sweep")] == [2, 1, 2]
    assert {file.name for file in tmp_path.iterdir()} == {"sweep"}
    for job in jobs(tmp_path / "sweep"):
        assert losses(job) == pytest.approx(losses(by_form("one")), rel=1e-5)


def test_a_failing_rank_ends_its_job_and_no_other(small, tmp_path):
    options = [*small, "trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.devices=2"]
    env = {"PYTHONPATH": f"{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"}
    failing = ["+callbacks.fail._target_=failing.FailingRank", "+callbacks.fail.rank=1,9"]
    process = start(
        sys.executable, "train.py", "-m", *options, *failing, f"hydra.sweep.dir={tmp_path}", **env
    )
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "0 failed with exit code" in output, output
    assert [job.name for job in jobs(tmp_path)] == ["1"]


def test_optuna_gives_every_rank_the_same_values(small, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    options = [*small, "trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.devices=2"]
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    space = ["optimizer.lr=tag(log, interval(0.0001, 0.01))", f"hydra.sweep.dir={tmp_path}"]
    done = run(
        "train.py", "-m", *options, *search, *space
    )  # CheckRanksAgree ends a run whose ranks differ
    assert done.returncode == 0, done.stderr
    rates = [board(job).Scalars("lr-SGD/weights")[0].value for job in jobs(tmp_path)]
    assert len(rates) == 2 == len(set(rates))


def test_sigterm_ends_a_sweep_and_its_processes(small, tmp_path):
    options = [
        *small,
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "seed=0,1",
    ]
    command = [
        sys.executable,
        "train.py",
        "-m",
        *options,
        "callbacks.last.minutes=0",
        f"hydra.sweep.dir={tmp_path}",
    ]
    process = start(*command)
    wait_for(tmp_path / "0" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 143, output
    assert not jobs(tmp_path) and find_checkpoint(tmp_path / "0", "last")
    left = subprocess.run(
        ["pgrep", "-f", str(tmp_path)], capture_output=True, text=True
    ).stdout.split()
    assert not left
    process = start(*command)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "goes on" not in output, output
    assert [result(job)["steps"] for job in jobs(tmp_path)] == [12, 12]
