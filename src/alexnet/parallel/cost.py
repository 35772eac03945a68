"""What each form of the paper's network sends, and what a step should take for it: `python -m alexnet.parallel.cost`.

Nothing is measured here but the counts, which tests/test_parallel.py compares with the collectives of a real step.
"""

import argparse
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

MAPS, FEATURES, UNITS, CLASSES = (
    256 * 13 * 13,
    256 * 6 * 6,
    4096,
    1000,
)  # what conv3, fc6, fc7 and fc8 (units) see
CONVS, PARAMETERS = 2_334_080, 60_965_224
FCS = PARAMETERS - CONVS

# Numbers that a device sends in a step: activations to its group, and weights and gradients in a ring of all devices
# and in one of those that hold the same share.
Sent = tuple[float, float, float]


def ddp(devices: int, batch: int, group: int) -> Sent:
    """Gradients are summed: each number is sent twice but for the device's own share."""
    return 0, 2 * (devices - 1) / devices * PARAMETERS, 0


def fsdp(devices: int, batch: int, group: int) -> Sent:
    """Weights are gathered before the forward and the backward pass, and gradients scattered."""
    return 0, 3 * (devices - 1) / devices * PARAMETERS, 0


def towers(devices: int, batch: int, group: int) -> Sent:
    """A group sees its devices' images together; gathers before conv3, fc6, fc7 and fc8 and of the logits, and all
    but the last scatter gradients."""
    groups = devices // group
    seen = 2 * (MAPS + FEATURES + 2 * UNITS) + CLASSES
    return batch * (group - 1) * seen, 0, 2 * (groups - 1) / groups * PARAMETERS / group


def hybrid(devices: int, batch: int, group: int) -> Sent:
    """The features of each device's images go to its group; convolutions are summed over all devices."""
    groups = devices // group
    seen = 2 * (FEATURES + 2 * UNITS) + 2 * CLASSES / group
    convs, fcs = 2 * (devices - 1) / devices * CONVS, 2 * (groups - 1) / groups * FCS / group
    return batch * (group - 1) * seen, convs, fcs


FORMS: dict[str, Callable[[int, int, int], Sent]] = {
    "ddp": ddp,
    "fsdp": fsdp,
    "towers": towers,
    "hybrid": hybrid,
}


def step_seconds(
    form: str,
    devices: int,
    batch: int,
    speed: float,
    machine: int,
    inside: float,
    across: float,
    group: int = 2,
) -> float:
    """Of a step with `batch` images a device, if nothing is sent while something is computed.

    speed: images a device trains in a second. machine: devices in one. inside: bytes/s that a device sends within its
    machine; across: that a machine sends to others. Groups lie within machines. Numbers are float32.
    """
    if devices == 1:
        return batch / speed
    activations, common, share = (4 * count for count in FORMS[form](devices, batch, group))
    machines = -(-devices // machine)
    crossing = (
        (common + group * share) / across if machines > 1 else 0.0
    )  # a ring crosses each machine's link once
    return batch / speed + activations / inside + max((common + share) / inside, crossing)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Predicted images/s of each form, and its gain over one device."
    )
    parser.add_argument("--batch", type=int, default=128, help="images a device and step")
    parser.add_argument("--speed", type=float, default=30_000, help="images/s of one device")
    parser.add_argument("--machine", type=int, default=8, help="devices in a machine")
    parser.add_argument(
        "--inside", type=float, default=300, help="GB/s of a device within its machine"
    )
    parser.add_argument("--across", type=float, default=12.5, help="GB/s of a machine to others")
    options = parser.parse_args()
    table = Table(
        "devices",
        "MB sent",
        *FORMS,
        title=f"{options.batch} images a device, {options.speed:,.0f} each/s",
    )
    for devices in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        if devices == 1:
            table.add_row("1", "", *[f"{options.speed:,.0f}"] * len(FORMS))
            continue
        sent = [sum(count(devices, options.batch, 2)) * 4e-6 for count in FORMS.values()]
        speeds = []
        for form in FORMS:
            links = options.machine, options.inside * 1e9, options.across * 1e9
            seconds = step_seconds(form, devices, options.batch, options.speed, *links)
            speeds.append(devices * options.batch / seconds)
        best = max(speeds)
        shown = [
            f"{'[bold]' if s == best else ''}{s:,.0f} ({s / options.speed:.1f} ×)" for s in speeds
        ]
        table.add_row(str(devices), " / ".join(f"{mb:,.0f}" for mb in sent), *shown)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
