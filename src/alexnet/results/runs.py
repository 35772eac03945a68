"""Finished runs, found by patterns and read from their folders alone."""

from collections.abc import Sequence
from glob import glob
from pathlib import Path


def run_folders(patterns: str | Sequence[str]) -> list[Path]:
    """Folders with a config.yaml that the patterns name, sorted within each; `*` and `**` may stand in them. Raises
    FileNotFoundError for a pattern without any."""
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        folders = [Path(name) for name in sorted(glob(pattern, recursive=True))]
        runs = [folder for folder in folders if (folder / "config.yaml").is_file()]
        if not runs:
            raise FileNotFoundError(f"{pattern} is no run folder (no config.yaml); a run's folder is outputs/train/…")
        found += [folder for folder in runs if folder not in found]
    return found
