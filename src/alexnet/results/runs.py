"""Finished runs, found by patterns and read from their folders alone.

What a run did is read from its configuration, never from the name of its folder. Two runs can be
compared if their configurations differ in nothing but the options that a claim is about and those
of `FREE_OPTIONS`, which change where and how fast a run computes, but not what.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from alexnet.errors import UserError
from alexnet.results.scoring import VIEWS, ErrorRates, Evaluation
from alexnet.run_folder import flatten, read_config

FREE_OPTIONS = (
    # What distinguishes repetitions of a run.
    "seed",
    "run_folder",
    "resume",
    "epochs",  # the default of trainer.max_epochs, which is compared
    # What it reports.
    "callbacks",
    "logger",
    "trainer.log_every_n_steps",
    # Where it computes, and how fast.
    "parallel",
    "compile",
    "fused",
    "trainer.devices",
    "trainer.accelerator",
    "trainer.num_nodes",
    "data.threads",
    "data.cache",
    "data.cache_gb",
)
CURVES = ("train/top1_error", "val/top1_error")
Options = dict[str, Any]  # {"model.width": 1.0, …}


class Run:
    """What a folder says of its run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.options: Options = flatten(OmegaConf.to_container(read_config(folder)))
        self.result: dict[str, Any] = read_json(folder / "result.json")
        self.seed: int = self.options["seed"]

    @cached_property
    def rates(self) -> dict[str, ErrorRates]:
        """The errors that evaluate.py found, by view; none before it ran."""
        file = self.folder / "checkpoints" / "result.json"
        if not file.is_file():
            return {}
        stored = read_json(file)
        return {view: stored[view] for view in VIEWS if view in stored}

    @cached_property
    def curves(self) -> dict[str, list[float]]:
        """The training and validation error after each epoch, as far as they were logged."""
        # Imported here because it takes a second, which most commands need not wait.
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folder = self.folder / "tensorboard"
        if not folder.is_dir():
            return {}
        logging.getLogger("tensorboard").setLevel(logging.WARNING)
        sizes = {"scalars": 0, "images": 1, "tensors": 1}  # how many are kept; 0: all
        events = EventAccumulator(str(folder), sizes).Reload()
        logged = events.Tags()["scalars"]
        curves = {}
        for name in CURVES:
            if name in logged:
                curves[name] = [event.value for event in events.Scalars(name)]
        return curves

    def read_metric(self, name: str) -> float | None:
        """A metric of the last epoch, such as `val/top1_error`."""
        return cast(float | None, self.result["final"].get(name))

    def describe(self) -> str:
        """`AlexNet × 0.125 on tiny_imagenet, 90 epochs`."""
        return f"{self.describe_network()}, {self.result['epochs']} epochs"

    def describe_network(self) -> str:
        """`AlexNet × 0.125 on tiny_imagenet`."""
        name = str(self.options["model._target_"]).rsplit(".", 1)[-1]
        width = self.options.get("model.width", 1.0)
        if width != 1:
            name += f" × {width:g}"
        return f"{name} on {Path(str(self.options['data.folder'])).name}"


def find_run_folders(patterns: str | Sequence[str]) -> list[Path]:
    """Folders with a config.yaml that match, pattern by pattern; `*` and `**` may stand in one.

    Raises UserError for a pattern that matches none.
    """
    found: dict[Path, None] = {}  # ordered, each once
    for pattern in _list_patterns(patterns):
        folders = [folder for folder in match_paths(pattern) if _has_config(folder)]
        if not folders:
            raise UserError(
                f"run={pattern} matches no run folder (one with config.yaml); "
                "a run's folder is outputs/train/<run>"
            )
        found.update(dict.fromkeys(folders))
    return list(found)


def read_runs(patterns: str | Sequence[str]) -> tuple[list[Run], list[Evaluation]]:
    """The finished runs and the averages of evaluate.py in all folders that match.

    Raises UserError if there is no finished run.
    """
    folders = sorted(set(match_paths(patterns)))  # patterns may overlap
    runs: list[Run] = []
    ensembles: list[Evaluation] = []
    for folder in folders:
        if not (folder / "result.json").is_file():
            continue
        if _has_config(folder):
            runs.append(Run(folder))
            continue
        result = read_json(folder / "result.json")
        if "average" in result:
            ensembles.append(result)
    if not runs:
        raise UserError(
            f"runs={patterns} matches no folder of a finished run "
            "(one with config.yaml and result.json)"
        )
    return runs, ensembles


def match_paths(patterns: str | Sequence[str]) -> list[Path]:
    """Files and folders, sorted within each pattern."""
    paths: list[Path] = []
    for pattern in _list_patterns(patterns):
        paths += map(Path, sorted(glob(pattern, recursive=True)))
    return paths


def _list_patterns(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _has_config(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def read_json(file: Path) -> Any:
    """Raises UserError if the file is corrupt."""
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"{file} is corrupt ({error}): delete it, or run what wrote it again"
        ) from error


def drop_repeats(runs: Iterable[Run]) -> list[Run]:
    """The last of runs that are equal, seed and all: a side that two sweeps share counts once."""
    distinct = {(read_conditions(run), run.seed): run for run in runs}  # a later one replaces
    return list(distinct.values())


def group_comparable(runs: Iterable[Run], options: Sequence[str] = ()) -> list[list[Run]]:
    """Groups of runs that are equal but for `options` and what is free, such as the seed."""
    groups: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        groups[read_conditions(run, options)].append(run)
    return list(groups.values())


def read_conditions(run: Run, except_for: Sequence[str] = ()) -> tuple[tuple[str, Any], ...]:
    """The options, sorted, that must be equal in runs that are compared.

    An option of `except_for` may be one value (`model.dropout`) or a group (`schedule`).
    """
    ignored = (*FREE_OPTIONS, *except_for)
    groups = tuple(f"{name}." for name in ignored)
    kept = []
    for name, value in sorted(run.options.items()):
        if name not in ignored and not name.startswith(groups):
            kept.append((name, value))
    return tuple(kept)
