"""Speed, measured side by side: each candidate in turn for several rounds, medians and spread."""

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
from statistics import median, quantiles
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Column, Table

log = logging.getLogger(__name__)


MATMUL, COPY = "a large matmul", "a large copy"


class Candidate(NamedTuple):
    """`work()` handles some images and gives their number; that of the ceilings `MATMUL` and `COPY`, FLOP and bytes.

    Optional: `cost()`, FLOP and bytes of memory traffic a image (0: not known); `without`, the candidate that lacks
    the part whose share of the time is to be shown."""

    name: str
    work: Callable[[], int]
    cost: Callable[[], tuple[float, float]] | None = None
    without: str | None = None


def run(cfg: DictConfig) -> None:
    from alexnet.benchmarks import device, end_to_end, epoch, loader, norms, prepare, step

    makers = {
        "loader": loader.list_candidates,
        "prepare": prepare.list_candidates,
        "step": step.list_candidates,
    }
    makers |= {"lrn": norms.list_candidates, "augment": device.augment, "evaluate": device.evaluate}
    makers |= {"epoch": epoch.list_candidates, "end_to_end": end_to_end.list_candidates}
    if cfg.what not in makers:
        raise ValueError(f"what={cfg.what} is not known; choose one of {', '.join(makers)}")
    candidates = makers[cfg.what](cfg)
    rates: dict[str, list[tuple[float, float]]] = {c.name: [] for c in candidates}
    begun = time.monotonic()
    for i in range(cfg.rounds + 1):
        for candidate in candidates:
            measured = _rates(candidate)
            if i:  # the first round warms up
                rates[candidate.name].append(measured)
        left = timedelta(seconds=round((time.monotonic() - begun) / (i + 1) * (cfg.rounds - i)))
        log.info("%s, ETA %s", f"round {i}/{cfg.rounds}" if i else "warmed up", left)
    medians = {
        name: [median(column) for column in zip(*rows, strict=True)] for name, rows in rates.items()
    }
    if MATMUL in medians:
        _print_shares(cfg.what, candidates, rates, medians)
    else:
        _print_rates(cfg.what, rates, medians)
    _write(cfg.what, rates)


def _rates(candidate: Candidate) -> tuple[float, float]:
    """Images per second of all cores' computing, of worker processes too, and per second of the clock."""
    wall, cpu = time.perf_counter(), _computed()
    count = candidate.work()
    return count / (_computed() - cpu), count / (time.perf_counter() - wall)


def _computed() -> float:
    """Seconds of computing of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(who.ru_utime + who.ru_stime for who in used)


def _print_rates(
    what: str, rates: dict[str, list[tuple[float, float]]], medians: dict[str, list[float]]
) -> None:
    columns = ("per CPU-second", "of the last", "per second", "16 cores would")
    table = Table("", *columns, title=f"{what}: images, median of rounds")
    slowest = list(medians.values())[-1][0]
    for name, (cpu, wall) in medians.items():
        shown = f"{cpu:,.0f} ± {_spread(rates[name], 0):.0%}", f"{cpu / slowest:.2f} ×"
        table.add_row(name, *shown, f"{wall:,.0f}", f"{16 * cpu:,.0f}")
    _show(table)


def _show(table: Table) -> None:
    """Prints a table in Markdown, and puts it into the run's folder."""
    table.box = MARKDOWN
    console = Console(record=True, width=160)
    console.print(table)
    (Path(HydraConfig.get().runtime.output_dir) / "table.md").write_text(console.export_text())


def _print_shares(
    what: str,
    candidates: list[Candidate],
    rates: dict[str, list[tuple[float, float]]],
    medians: dict[str, list[float]],
) -> None:
    """What binds a candidate is the ceiling that it comes nearest to."""
    flops, bandwidth, last = (medians[name][1] for name in (MATMUL, COPY, candidates[-1].name))
    columns = ("per second", "of the last", "extra", "of FLOP/s", "of bytes/s", "bound by")
    title = f"{what}: images, median of rounds; extra: share of the time, beyond the one without the part"
    table = Table(Column(no_wrap=True), *columns, title=title)
    for name, _, cost, without in candidates:
        if name in (MATMUL, COPY):
            continue
        rate = medians[name][1]
        shares = [
            rate * c / ceiling
            for c, ceiling in zip(cost() if cost else (0, 0), (flops, bandwidth), strict=True)
        ]
        table.add_row(
            name,
            f"{rate:,.1f} ± {_spread(rates[name], 1):.0%}",
            f"{rate / last:.2f} ×",
            _part(rates, name, without) if without else "",
            *(f"{share:.0%}" if share else "" for share in shares),
            ("arithmetic" if shares[0] > shares[1] else "memory") if all(shares) else "",
        )
    _show(table)
    Console().print(
        f"ceilings: {MATMUL} {flops / 1e12:,.2f} TFLOP/s, {COPY} {bandwidth / 1e9:,.1f} GB/s"
    )


def _part(rates: dict[str, list[tuple[float, float]]], whole: str, without: str) -> str:
    """The share of the time that `without` is spared, in rounds of both, one after the other."""
    shares = [1 - a[1] / b[1] for a, b in zip(rates[whole], rates[without], strict=True)]
    return f"{median(shares):.1%}"


def _spread(rows: list[tuple[float, float]], column: int) -> float:
    """Half of what lies between the quartiles, as a share of the median."""
    low, middle, high = quantiles([row[column] for row in rows], n=4)
    return (high - low) / 2 / middle


def _write(what: str, rates: dict[str, list[tuple[float, float]]]) -> None:
    facts = {
        "what": what,
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        "images per CPU-second and second": rates,
    }
    file = Path(HydraConfig.get().runtime.output_dir) / "result.json"
    file.write_text(json.dumps(facts, indent=2) + "\n")
    log.info("all figures in %s", file)
