"""Tables of what a benchmark measured, in Markdown."""

from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Column, Table

from alexnet.benchmarks.candidate import COPY, MATMUL, Candidate, Cost


class Speed(NamedTuple):
    """Images per CPU-second, summed over all threads and processes, and per second of the clock."""

    per_cpu_second: float
    per_second: float


Measurements = dict[str, list[Speed]]  # by candidate, one for each round


def print_table(table: Table, folder: Path) -> None:
    """Prints a table and writes it to `folder`/table.md."""
    table.box = MARKDOWN
    console = Console(record=True, width=160)
    console.print(table)
    (folder / "table.md").write_text(console.export_text())


def build_loading_table(what: str, measurements: Measurements) -> Table:
    """Candidates whose cost is CPU time; the last row is the baseline."""
    # What 16 cores would do is computed, as if nothing but CPU time limited them.
    columns = ("per CPU-second", "relative to the last row", "per second", "16 cores would")
    table = Table("", *columns, title=f"{what}: images, median of rounds")
    medians = {name: median_speed(speeds) for name, speeds in measurements.items()}
    baseline = list(medians.values())[-1].per_cpu_second
    for name, speeds in measurements.items():
        cpu = medians[name].per_cpu_second
        table.add_row(
            name,
            f"{cpu:,.0f}{describe_spread([speed.per_cpu_second for speed in speeds])}",
            f"{cpu / baseline:.2f} ×",
            f"{medians[name].per_second:,.0f}",
            f"{16 * cpu:,.0f}",
        )
    return table


def build_device_table(what: str, candidates: list[Candidate], measurements: Measurements) -> Table:
    """Candidates that use the whole device; the last row is the baseline.

    The ceiling that a candidate is nearest to is what limits it.
    """
    columns = ("per second", "relative to the last row", "extra")
    shares = ("of FLOP/s", "of bytes/s", "bound by")
    title = f"{what}: images, median of rounds; extra: share of the time that the part takes"
    table = Table(Column(no_wrap=True), *columns, *shares, title=title)
    medians = {name: median_speed(speeds).per_second for name, speeds in measurements.items()}
    baseline = medians[candidates[-1].name]
    for candidate in candidates:
        name = candidate.name
        if name in (MATMUL, COPY):
            continue  # they count FLOP or bytes; describe_ceilings prints them
        speeds = [speed.per_second for speed in measurements[name]]
        table.add_row(
            name,
            f"{medians[name]:,.1f}{describe_spread(speeds)}",
            f"{medians[name] / baseline:.2f} ×",
            describe_extra(candidate, measurements),
            *describe_shares(candidate, medians),
        )
    return table


def describe_extra(candidate: Candidate, measurements: Measurements) -> str:
    """The share of a candidate's time that its part takes, from pairs of one round each."""
    if candidate.without is None:
        return ""
    # Both speeds of a pair were measured within the same round, when the machine was alike.
    shares = []
    pairs = zip(measurements[candidate.name], measurements[candidate.without], strict=True)
    for with_part, without_part in pairs:
        shares.append(1 - with_part.per_second / without_part.per_second)
    return f"{median(shares):.1%}"


def describe_shares(candidate: Candidate, medians: dict[str, float]) -> tuple[str, str, str]:
    """The shares of each ceiling that a candidate uses, and which is larger; empty if unknown."""
    cost = candidate.cost or Cost(flop=0, bytes=0)
    images_per_second = medians[candidate.name]
    arithmetic = images_per_second * cost.flop / medians[MATMUL]
    memory = images_per_second * cost.bytes / medians[COPY]
    bound = ""  # unknown, unless both costs are known
    if arithmetic and memory:
        bound = "arithmetic" if arithmetic > memory else "memory"
    return format_share(arithmetic), format_share(memory), bound


def describe_ceilings(measurements: Measurements) -> str:
    flops = median_speed(measurements[MATMUL]).per_second
    bandwidth = median_speed(measurements[COPY]).per_second
    return f"ceilings: {MATMUL} {flops / 1e12:,.2f} TFLOP/s, {COPY} {bandwidth / 1e9:,.1f} GB/s"


def format_share(share: float) -> str:
    return f"{share:.0%}" if share else ""


def median_speed(speeds: list[Speed]) -> Speed:
    """The median of each figure on its own."""
    return Speed(*(median(values) for values in zip(*speeds, strict=True)))


def describe_spread(values: list[float]) -> str:
    """Half the distance between the quartiles, as a share of the median; nothing for one round."""
    if len(values) < 2:
        return ""
    low, middle, high = quantiles(values, n=4)
    return f" ± {(high - low) / 2 / middle:.0%}"
