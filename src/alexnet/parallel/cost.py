"""Predicted images/s of each strategy, for the paper's network: `python -m alexnet.parallel.cost`.

The numbers that a device sends in a step follow from the network's sizes; tests/test_parallel.py
compares them with the collectives of a real step. The times are predictions, not measurements: they
assume that nothing is sent while something is computed.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

# Numbers for each image.
MAPS = 256 * 13 * 13  # that conv3 sees
FEATURES = 256 * 6 * 6  # that fc6 sees
UNITS = 4096  # that fc7 and fc8 see
CLASSES = 1000  # logits

PARAMETERS = 60_965_224
CONVOLUTION_PARAMETERS = 2_334_080
LINEAR_PARAMETERS = PARAMETERS - CONVOLUTION_PARAMETERS

BYTES = 4  # of a float32
GROUP_SIZE = 2
DEVICE_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Traffic(NamedTuple):
    """How many numbers a device sends in a step."""

    activations: float = 0  # to the other devices of its group
    parameters: float = 0  # weights and gradients, in a ring of all devices
    shard_parameters: float = 0  # gradients, in a ring of the devices that hold the same shard


class Cluster(NamedTuple):
    """Devices, and the links within a machine and between machines."""

    images_per_second: float  # that one device trains
    devices_per_machine: int
    bytes_inside: float  # that a device sends in a second within its machine
    bytes_across: float  # that a machine sends in a second to others


def count_ddp(devices: int, batch: int, group_size: int) -> Traffic:
    """Gradients are summed in a ring: each is sent twice, except the device's own part."""
    return Traffic(parameters=2 * _share_others(devices) * PARAMETERS)


def count_fsdp(devices: int, batch: int, group_size: int) -> Traffic:
    """Weights are gathered before the forward and the backward pass, and gradients scattered."""
    return Traffic(parameters=3 * _share_others(devices) * PARAMETERS)


def count_towers(devices: int, batch: int, group_size: int) -> Traffic:
    """A group sees the images of its devices together.

    It gathers the inputs of conv3, fc6, fc7 and fc8, whose gradients are scattered, and the logits.
    """
    numbers = 2 * (MAPS + FEATURES + 2 * UNITS) + CLASSES
    groups = devices // group_size
    return Traffic(
        activations=batch * (group_size - 1) * numbers,
        shard_parameters=2 * _share_others(groups) * PARAMETERS / group_size,
    )


def count_hybrid(devices: int, batch: int, group_size: int) -> Traffic:
    """The features of each device's images go to its group; all devices sum the convolutions."""
    numbers = 2 * (FEATURES + 2 * UNITS) + 2 * CLASSES / group_size
    groups = devices // group_size
    return Traffic(
        activations=batch * (group_size - 1) * numbers,
        parameters=2 * _share_others(devices) * CONVOLUTION_PARAMETERS,
        shard_parameters=2 * _share_others(groups) * LINEAR_PARAMETERS / group_size,
    )


COUNTERS: dict[str, Callable[[int, int, int], Traffic]] = {
    "ddp": count_ddp,
    "fsdp": count_fsdp,
    "towers": count_towers,
    "hybrid": count_hybrid,
}


def predict_seconds(strategy: str, devices: int, batch: int, cluster: Cluster) -> float:
    """Of a step with `batch` images on each device. Groups lie within machines."""
    compute = batch / cluster.images_per_second
    if devices == 1:
        return compute
    traffic = COUNTERS[strategy](devices, batch, GROUP_SIZE)
    machines = -(-devices // cluster.devices_per_machine)
    inside = BYTES * (traffic.parameters + traffic.shard_parameters) / cluster.bytes_inside
    across = 0.0
    if machines > 1:
        # A ring crosses each machine's link once, and there is a ring for each shard.
        crossing = traffic.parameters + GROUP_SIZE * traffic.shard_parameters
        across = BYTES * crossing / cluster.bytes_across
    activations = BYTES * traffic.activations / cluster.bytes_inside
    return compute + activations + max(inside, across)


def build_table(batch: int, cluster: Cluster) -> Table:
    single = cluster.images_per_second
    title = f"{batch} images a device, {single:,.0f} each/s"
    table = Table("devices", "MB sent", *COUNTERS, title=title)
    for devices in DEVICE_COUNTS:
        if devices == 1:
            table.add_row("1", "", *[f"{single:,.0f}"] * len(COUNTERS))
            continue
        megabytes = []
        speeds = []
        for strategy, count_traffic in COUNTERS.items():
            megabytes.append(sum(count_traffic(devices, batch, GROUP_SIZE)) * BYTES / 1e6)
            seconds = predict_seconds(strategy, devices, batch, cluster)
            speeds.append(devices * batch / seconds)
        cells = [f"{speed:,.0f} ({speed / single:.1f} ×)" for speed in speeds]
        best = speeds.index(max(speeds))
        cells[best] = f"[bold]{cells[best]}"
        table.add_row(str(devices), " / ".join(f"{size:,.0f}" for size in megabytes), *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Predicted images/s of each strategy, and its gain over one device."
    )
    add = parser.add_argument
    add("--batch", type=int, default=128, help="images a device and step")
    add("--speed", type=float, default=30_000, help="images/s of one device")
    add("--machine", type=int, default=8, help="devices in a machine")
    add("--inside", type=float, default=300, help="GB/s of a device within its machine")
    add("--across", type=float, default=12.5, help="GB/s of a machine to others")
    options = parser.parse_args()
    cluster = Cluster(options.speed, options.machine, options.inside * 1e9, options.across * 1e9)
    Console(width=140).print(build_table(options.batch, cluster))


def _share_others(devices: int) -> float:
    """The part of a ring's numbers that belongs to the other devices."""
    return (devices - 1) / devices


if __name__ == "__main__":
    main()
