"""Runs each job of a sweep in a process of its own.

Lightning starts a run's other ranks by the command that started the first. Under `--multirun` in one process, that is
the whole sweep: ranks then train other jobs than they should, or hang.
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

log = logging.getLogger(__name__)
OF_THIS_PROCESS = (
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
)


class ProcessLauncher(Launcher):
    """One job after the other. A job with a result.json is done and is not run again, one with a checkpoint goes on; so
    the same command with the same hydra.sweep.dir completes an interrupted sweep. A failing job does not stop the
    others."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
            raise HydraException(
                "a sweep starts its processes by itself: leave torchrun out, or give SLURM --ntasks=1"
            )
        before = signal.signal(signal.SIGTERM, _exit)
        try:
            jobs = [
                self._job(list(overrides), initial_job_idx + i)
                for i, overrides in enumerate(job_overrides)
            ]
        finally:
            signal.signal(signal.SIGTERM, before)
        if len(jobs) > 1:
            _table(jobs)
        return jobs

    def _job(self, overrides: list[str], number: int) -> JobReturn:
        cfg = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        folder = Path(cfg.hydra.sweep.dir) / cfg.hydra.sweep.subdir
        job = JobReturn(overrides=overrides, working_dir=str(folder), task_name=cfg.hydra.job.name)
        if (there := _options(folder)) not in (None, overrides):
            job.status = JobStatus.FAILED
            job.return_value = ValueError(
                f"{folder} holds another job ({' '.join(there)}): give another hydra.sweep.dir"
            )
            log.error("%s", job._return_value)
            return job
        if (folder / "result.json").is_file():
            log.info("%s is done: %s", folder, " ".join(overrides))
        else:
            log.info("%s: %s", folder, " ".join(overrides))
            code = _run(_command(overrides, folder))
            if code:
                job.status = JobStatus.FAILED
                job.return_value = RuntimeError(f"the job in {folder} ended with exit code {code}")
                log.error("%s failed with exit code %d", folder, code)
                return job
        job.status = JobStatus.COMPLETED
        job.return_value = _result(folder).get("best_top1_error")
        return job


def _options(folder: Path) -> list[str] | None:
    """Those of the job in `folder`; a job that went on names its folder alone."""
    file = folder / ".hydra" / "overrides.yaml"
    options = list(OmegaConf.load(file)) if file.is_file() else ["resume="]
    return None if options[:1] and options[0].startswith("resume=") else options


def _command(overrides: list[str], folder: Path) -> list[str]:
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    if (folder / "checkpoints" / "last.ckpt").is_file():
        return [sys.executable, sys.argv[0], f"resume='{quoted}'"]
    return [sys.executable, sys.argv[0], *overrides, f"hydra.run.dir='{quoted}'", "hydra.mode=RUN"]


def _run(command: list[str]) -> int:
    """Its exit code. The process ends with this one, by Ctrl-C and SIGTERM too."""
    from alexnet.cli import SHOW_TRACEBACKS

    env = {name: value for name, value in os.environ.items() if name not in OF_THIS_PROCESS}
    if not SHOW_TRACEBACKS:
        env.pop("HYDRA_FULL_ERROR", None)
    process = subprocess.Popen(command, env=env)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _result(folder: Path) -> dict[str, Any]:
    file = folder / "result.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _table(jobs: list[JobReturn]) -> None:
    table = Table("job", "options", "best top-1 error", "top-5 error", "folder")
    for number, job in enumerate(jobs):
        result = _result(Path(str(job.working_dir)))
        best, top5 = result.get("best_top1_error"), result.get("final", {}).get("val/top5_error")
        shown = [f"{value:.2%}" if value is not None else "failed" for value in (best, top5)]
        table.add_row(str(number), " ".join(job.overrides or []), *shown, str(job.working_dir))
    Console().print(table)
