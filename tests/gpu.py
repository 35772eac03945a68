"""What only a GPU can show, in one command and about half an hour: `python tests/gpu.py`. Checks, then times; prints
the hardware, versions and date that belong beside every figure. Needs 12 GB of disk for 50,000 images.
`python tests/gpu.py checks lrn` does two parts alone; the others are step, augment, evaluate and end_to_end."""

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
BF16 = [f"folder={STORE}", "precision=bf16-mixed", "rounds=7"]
FROM_DISK = [
    "benchmark.py",
    "what=end_to_end",
    *BF16,
    "batch_size=1024",
    "images=8192",
    "steps=40",
    "compile=true",
]
CHECKS = [
    f"tests/test_{name}.py"
    for name in ("fused", "speed", "nets", "results", "runs", "resume", "parallel")
]
PARTS = {
    "checks": [["-m", "pytest", "-n", "4", *CHECKS]],
    "lrn": [["benchmark.py", "what=lrn", *BF16, f"batch_size={size}"] for size in (128, 1024)],
    "step": [["benchmark.py", "what=step", *BF16, f"batch_size={size}"] for size in (128, 1024)],
    "augment": [["benchmark.py", "what=augment", *BF16, "batch_size=1024"]],
    "evaluate": [["benchmark.py", "what=evaluate", *BF16, "batch_size=256"]],
    "end_to_end": [FROM_DISK, [*FROM_DISK, "fused=true"]],
}


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("tests/gpu.py needs a GPU that torch can use")
    if unknown := set(sys.argv[1:]) - set(PARTS):
        sys.exit(f"{', '.join(unknown)}: no such part; choose from {', '.join(PARTS)}")
    print(torch.cuda.get_device_name(), platform.processor(), datetime.date.today())
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, triton {triton.__version__}"
    )
    render_store(ROOT / STORE, seed=0, train=50_000, val=1_000)
    failed = [
        command for part in sys.argv[1:] or PARTS for command in PARTS[part] if not _run(command)
    ]
    sys.exit(f"failed: {failed}" if failed else 0)


def _run(command: list[str]) -> bool:
    print("\n$ python", *command, flush=True)
    return (
        subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=os.environ | {"ACCELERATOR": "gpu"}
        ).returncode
        == 0
    )


if __name__ == "__main__":
    main()
