"""Runs each job of a sweep in a process of its own, one after the other.

Lightning starts a run's other ranks by the command that started the first. Under `--multirun` in
one process that command is the whole sweep: the ranks would train other jobs than they should, or
hang.

A job with a result.json is skipped and one with a checkpoint is resumed, so the same command with
the same hydra.sweep.dir completes an interrupted sweep. A failing job does not stop the others.

The module must lie here: Hydra builds launchers only from packages below `hydra_plugins`.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.table import Table

from alexnet.cli import reset_traceback_variable
from alexnet.errors import UserError

log = logging.getLogger(__name__)
# Set by whoever started this process; a job must not take itself for one of its ranks.
RANK_VARIABLES = (
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
)


class ProcessLauncher(Launcher):
    """Hydra's launcher for `hydra/launcher=process`, the default."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context = hydra_context
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Runs the jobs, prints a table of their results and returns them to the sweeper."""
        if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
            raise HydraException(
                "a sweep starts its processes by itself: leave torchrun out, or give SLURM "
                "--ntasks=1"
            )
        handler = signal.signal(signal.SIGTERM, _exit_on_signal)
        try:
            jobs = []
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                jobs.append(self._run_job(list(overrides), number))
        finally:
            signal.signal(signal.SIGTERM, handler)
        if len(jobs) > 1:
            print_results(jobs)
        return jobs

    def _run_job(self, overrides: list[str], number: int) -> JobReturn:
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = number
            config.hydra.job.num = number
        folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        name = config.hydra.job.name
        job = JobReturn(overrides=overrides, working_dir=str(folder), task_name=name)
        job.status = JobStatus.FAILED
        other = read_job_overrides(folder)
        if other is not None and other != overrides:
            message = (
                f"{folder} holds another job ({' '.join(other)}): give another hydra.sweep.dir"
            )
            job.return_value = UserError(message)
            log.error("%s", message)
            return job
        if (folder / "result.json").is_file():
            log.info("%s is finished: %s", folder, " ".join(overrides))
        else:
            log.info("%s: %s", folder, " ".join(overrides))
            code = run_process(build_command(overrides, folder))
            if code != 0:
                job.return_value = UserError(f"the job in {folder} failed with exit code {code}")
                log.error("%s failed with exit code %d", folder, code)
                return job
        job.status = JobStatus.COMPLETED
        job.return_value = read_result(folder).get("best_top1_error")
        return job


def read_job_overrides(folder: Path) -> list[str] | None:
    """The options of the job in `folder`; None if there is none, or if it was resumed.

    The options of a resumed job name its folder alone.
    """
    file = folder / ".hydra" / "overrides.yaml"
    if not file.is_file():
        return None
    overrides = [str(text) for text in OmegaConf.load(file)]
    is_resumed = bool(overrides) and overrides[0].startswith("resume=")
    return None if is_resumed else overrides


def build_command(overrides: list[str], folder: Path) -> list[str]:
    """Starts the job in `folder`, or resumes it if it has a checkpoint."""
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    if (folder / "checkpoints" / "last.ckpt").is_file():
        return [sys.executable, sys.argv[0], f"resume='{escaped}'"]
    return [sys.executable, sys.argv[0], *overrides, f"hydra.run.dir='{escaped}'", "hydra.mode=RUN"]


def run_process(command: list[str]) -> int:
    """Its exit code. Ctrl-C and SIGTERM to this process end the job, too."""
    environment = dict(os.environ)
    reset_traceback_variable(environment)
    for name in RANK_VARIABLES:
        environment.pop(name, None)
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def read_result(folder: Path) -> dict[str, Any]:
    """A job's result.json; empty if it has none."""
    file = folder / "result.json"
    if not file.is_file():
        return {}
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def print_results(jobs: Sequence[JobReturn]) -> None:
    """A table with a line for each job."""
    table = Table("job", "options", "best top-1 error", "top-5 error")
    for number, job in enumerate(jobs):
        result = read_result(Path(str(job.working_dir)))
        errors = [result.get("best_top1_error"), result.get("final", {}).get("val/top5_error")]
        cells = ["failed" if error is None else f"{error:.2%}" for error in errors]
        table.add_row(str(number), " ".join(job.overrides or []), *cells)
    Console().print(table)
    log.info("jobs in %s", Path(str(jobs[0].working_dir)).parent)
