"""Speed, measured side by side: each contestant in turn for several rounds, medians and spread."""

import json
import logging
import os
import platform
import resource
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

log = logging.getLogger(__name__)


class Contestant(NamedTuple):
    """`work()` handles some pictures and gives their number."""

    name: str
    work: Callable[[], int]


def run(cfg: DictConfig) -> None:
    from alexnet.benchmarks import loader, prepare

    makers = {"loader": loader.contestants, "prepare": prepare.contestants}
    if cfg.what not in makers:
        raise ValueError(f"what={cfg.what} is not known; choose one of {', '.join(makers)}")
    contestants = makers[cfg.what](cfg)
    rates: dict[str, list[tuple[float, float]]] = {c.name: [] for c in contestants}
    for i in range(cfg.rounds + 1):
        for contestant in contestants:
            measured = _rates(contestant)
            if i:  # the first round warms up
                rates[contestant.name].append(measured)
    _report(cfg.what, rates)


def _rates(contestant: Contestant) -> tuple[float, float]:
    """Pictures per second of all cores' computing, of worker processes too, and per second of the clock."""
    wall, cpu = time.perf_counter(), _computed()
    count = contestant.work()
    return count / (_computed() - cpu), count / (time.perf_counter() - wall)


def _computed() -> float:
    """Seconds of computing of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(who.ru_utime + who.ru_stime for who in used)


def _report(what: str, rates: dict[str, list[tuple[float, float]]]) -> None:
    columns = ("per CPU-second", "of the last", "per second", "16 cores would")
    table = Table("", *columns, title=f"{what}: pictures, median of rounds")
    medians = {name: [median(column) for column in zip(*rows, strict=True)] for name, rows in rates.items()}
    slowest = list(medians.values())[-1][0]
    for name, (cpu, wall) in medians.items():
        spread = max(r[0] for r in rates[name]) / min(r[0] for r in rates[name]) - 1
        table.add_row(
            name, f"{cpu:,.0f} ± {spread / 2:.0%}", f"{cpu / slowest:.2f} ×", f"{wall:,.0f}", f"{16 * cpu:,.0f}"
        )
    Console().print(table)
    facts = {
        "what": what,
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        "pictures per CPU-second and second": rates,
    }
    file = Path(HydraConfig.get().runtime.output_dir) / "result.json"
    file.write_text(json.dumps(facts, indent=2) + "\n")
    log.info("all figures in %s", file)
