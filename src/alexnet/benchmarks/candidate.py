"""What a benchmark measures.

Each benchmark is a module with `list_candidates(config)`. Its candidates do the same job in
different ways; alexnet.benchmarks.run measures them in turn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

FOLDER = Path("outputs/benchmark")  # for the files that benchmarks make
# Candidates whose work returns FLOP and bytes instead of images: the most that this device can do.
MATMUL = "a large matmul"
COPY = "a large copy"


class Cost(NamedTuple):
    """What one image takes: floating point operations and bytes of memory traffic; 0 if unknown."""

    flop: float
    bytes: float


@dataclass(frozen=True)
class Candidate:
    """One way to do the job.

    Arguments:
        name: its row in the table.
        work: processes some images and returns how many.
        cost: of one image, to compare with the ceilings.
        without: name of the candidate that lacks the part whose share of the time is shown.
    """

    name: str
    work: Callable[[], int]
    cost: Cost | None = None
    without: str | None = None
