"""Finished runs, found by patterns and read from their folders alone."""

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alexnet.run_folder import flatten, read_config


def find_run_folders(patterns: str | Sequence[str]) -> list[Path]:
    """Folders with a config.yaml that the patterns name, sorted within each; `*` and `**` may stand in them. Raises
    FileNotFoundError for a pattern without any."""
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        runs = [folder for folder in matches(pattern) if (folder / "config.yaml").is_file()]
        if not runs:
            raise FileNotFoundError(
                f"{pattern} is no run folder (no config.yaml); a run's folder is outputs/train/…"
            )
        found += [folder for folder in runs if folder not in found]
    return found


def matches(pattern: str) -> list[Path]:
    return [Path(name) for name in sorted(glob(pattern, recursive=True))]


class Run:
    """What a folder says of its run. `options` are its configuration as {"model.width": 1.0, …}."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = read_config(folder)
        self.options = flatten(OmegaConf.to_container(self.config))
        self.result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        self.seed = self.options["seed"]

    @cached_property
    def views(self) -> dict[str, Any]:
        """What evaluate.py found of it: errors from the center crop and from ten views."""
        file = self.folder / "checkpoints" / "result.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    @cached_property
    def curves(self) -> dict[str, list[float]]:
        """`train/top1_error`, `val/top1_error` after each epoch, from the TensorBoard files, if they are there."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folder = self.folder / "tensorboard"
        if not folder.is_dir():
            return {}
        logging.getLogger("tensorboard").setLevel(logging.WARNING)
        events = EventAccumulator(str(folder), {"scalars": 0, "images": 1, "tensors": 1}).Reload()
        there = events.Tags()["scalars"]
        names = [name for name in ("train/top1_error", "val/top1_error") if name in there]
        return {name: [event.value for event in events.Scalars(name)] for name in names}

    @property
    def data(self) -> str:
        return Path(str(self.options["data.folder"])).name

    def final(self, name: str) -> float | None:
        """A figure of the last epoch, such as `val/top1_error`."""
        return self.result["final"].get(name)
