"""Runs a benchmark: all candidates in turn, for several rounds.

Other programs and the processor's clock slow down whatever runs at the moment. Taking turns spreads
that over all candidates, so their ratios hold better than their speeds. The run's folder keeps the
medians over rounds in table.md, and each round's speeds in result.json.
"""

import json
import logging
import os
import platform
import resource
import time
from collections.abc import Callable
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from alexnet.benchmarks import (
    augment,
    end_to_end,
    epoch,
    evaluate,
    loader,
    lrn,
    prepare,
    step,
)
from alexnet.benchmarks.candidate import MATMUL, Candidate
from alexnet.benchmarks.tables import (
    Measurements,
    Speed,
    build_device_table,
    build_loading_table,
    describe_ceilings,
    print_table,
)

log = logging.getLogger(__name__)
# Whose versions stand in result.json.
PACKAGES = ("torch", "torchvision", "numpy", "pillow")
# The choices of `what`, which alexnet.options checks.
BENCHMARKS: dict[str, Callable[[DictConfig], list[Candidate]]] = {
    "loader": loader.list_candidates,
    "prepare": prepare.list_candidates,
    "step": step.list_candidates,
    "lrn": lrn.list_candidates,
    "augment": augment.list_candidates,
    "evaluate": evaluate.list_candidates,
    "epoch": epoch.list_candidates,
    "end_to_end": end_to_end.list_candidates,
}


def run(config: DictConfig) -> None:
    """Measures the candidates of the benchmark `config.what` and shows them in a table."""
    candidates = BENCHMARKS[config.what](config)
    measurements = measure_rounds(candidates, config.rounds)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if MATMUL in measurements:  # candidates that use the device have its ceilings beside them
        print_table(build_device_table(config.what, candidates, measurements), folder)
        print(describe_ceilings(measurements))
    else:
        print_table(build_loading_table(config.what, measurements), folder)
    write_result(config.what, measurements, folder / "result.json")


def measure_rounds(candidates: list[Candidate], rounds: int) -> Measurements:
    """The speeds of each candidate, by name, one for each round."""
    measurements: Measurements = {candidate.name: [] for candidate in candidates}
    start = time.monotonic()
    # One round that is not counted: it fills caches and compiles.
    for candidate in candidates:
        measure_speed(candidate)
    log_progress("warmed up", start, done=1, left=rounds)
    for number in range(1, rounds + 1):
        for candidate in candidates:
            measurements[candidate.name].append(measure_speed(candidate))
        log_progress(f"round {number}/{rounds}", start, done=number + 1, left=rounds - number)
    return measurements


def log_progress(message: str, start: float, *, done: int, left: int) -> None:
    seconds_per_round = (time.monotonic() - start) / done
    log.info("%s, ETA %s", message, timedelta(seconds=round(seconds_per_round * left)))


def measure_speed(candidate: Candidate) -> Speed:
    """Lets a candidate work once."""
    wall_start = time.perf_counter()
    cpu_start = read_cpu_seconds()
    count = candidate.work()
    cpu_seconds = read_cpu_seconds() - cpu_start
    wall_seconds = time.perf_counter() - wall_start
    return Speed(count / cpu_seconds, count / wall_seconds)


def read_cpu_seconds() -> float:
    """CPU time of all threads of this process and of its finished child processes."""
    # The system counts a child only once it has ended. So candidates with worker processes start
    # and end them in each round.
    seconds = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        seconds += usage.ru_utime + usage.ru_stime
    return seconds


def write_result(what: str, measurements: Measurements, file: Path) -> None:
    result = {
        "what": what,
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "versions": {name: version(name) for name in PACKAGES},
        "images per CPU-second and second": measurements,
    }
    file.write_text(json.dumps(result, indent=2) + "\n")
    log.info("all measurements are in %s", file)
