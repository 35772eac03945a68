"""Checks what only a GPU can show, then times training and its parts: `python tests/gpu.py`.

Takes about half an hour, and 12 GB of disk for a store of 50,000 images. Prints the hardware,
versions and date that belong beside every figure. `python tests/gpu.py checks lrn` runs these two
parts only; the others are step, augment, evaluate and end_to_end.
"""

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
import torchvision
import triton

from alexnet.data.shapes import render_store

ROOT = Path(__file__).parent.parent
STORE = Path("outputs/data/shapes50000")
# Tests that compare a GPU's results with the CPU's, or runs with each other.
CHECKS = ("fused", "speed", "nets", "results", "runs", "resume", "parallel")
# Of the benchmarks, by part.
BATCH_SIZES = {"lrn": (128, 1024), "step": (128, 1024), "augment": (1024,), "evaluate": (256,)}
PARTS = ("checks", *BATCH_SIZES, "end_to_end")


def list_commands(part: str) -> list[list[str]]:
    """The arguments of each of a part's Python commands."""
    if part == "checks":
        return [["-m", "pytest", "-n", "4", *(f"tests/test_{name}.py" for name in CHECKS)]]
    benchmark = [
        "benchmark.py",
        f"what={part}",
        f"folder={STORE}",
        "precision=bf16-mixed",
        "rounds=7",
    ]
    if part == "end_to_end":
        benchmark += ["batch_size=1024", "images=8192", "steps=40", "compile=true"]
        return [benchmark, [*benchmark, "fused=true"]]
    return [[*benchmark, f"batch_size={size}"] for size in BATCH_SIZES[part]]


def main() -> None:
    parts = sys.argv[1:] or PARTS
    unknown = set(parts) - set(PARTS)
    if unknown:
        sys.exit(f"{', '.join(unknown)}: unknown part; choose from {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        sys.exit("tests/gpu.py needs a GPU that torch can use")
    print_environment()
    render_store(ROOT / STORE, seed=0, train=50_000, val=1_000)
    failed = []
    for part in parts:
        for command in list_commands(part):
            if not run_python(command):
                failed.append(command)
    sys.exit(f"failed: {failed}" if failed else 0)


def print_environment() -> None:
    print(torch.cuda.get_device_name(), platform.processor(), datetime.date.today())
    versions = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "triton": triton.__version__,
    }
    print(", ".join(f"{name} {version}" for name, version in versions.items()))


def run_python(command: list[str]) -> bool:
    """Runs a command on the GPU; returns whether it succeeded."""
    print("\n$ python", *command, flush=True)
    environment = os.environ | {"ACCELERATOR": "gpu"}
    finished = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment)
    return finished.returncode == 0


if __name__ == "__main__":
    main()
