"""What a run's folder holds: its configuration, checkpoints and result.

config.yaml                  all options, written when the run starts
run.json                     command, seed, versions and device
checkpoints/best.ckpt        the weights of the epoch with the least validation error
checkpoints/last.ckpt        the newest state, from which the run resumes
checkpoints/previous.ckpt    the one before it, in case the newest is corrupt
tensorboard/, train.log      curves, images and messages
result.json                  written when the run has finished
"""

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alexnet.errors import UserError

log = logging.getLogger(__name__)
FORMAT = 2  # of config.yaml; stored as `run_format`
TRUSTED = ("alexnet.", "torch.", "lightning.")


def choose_run_folder(resume: str | None, new: str) -> str:
    """The folder that a training run writes to: the resumed run's if there is one, else `new`.

    `auto` is the latest run beside `new` that has a checkpoint and no result.
    """
    if resume == "auto":
        unfinished = [
            folder
            for folder in Path(new).parent.glob("*/")
            if can_be_resumed(folder) and not (folder / "result.json").exists()
        ]
        return str(max(unfinished, key=lambda folder: folder.name, default=new))
    if resume and (Path(resume) / "config.yaml").is_file():
        return resume
    return new


def can_be_resumed(folder: str | Path) -> bool:
    """Whether a folder holds a run that has saved a checkpoint."""
    has_config = (Path(folder) / "config.yaml").is_file()
    return has_config and any(Path(folder).glob("checkpoints/*.ckpt"))


def write_config(config: DictConfig, folder: Path) -> None:
    """Writes config.yaml with its interpolations, so that the folder may be moved."""
    stored = OmegaConf.merge({"run_format": FORMAT}, config)
    OmegaConf.save(stored, folder / "config.yaml")


def read_config(folder: str | Path) -> DictConfig:
    """The options of the run in `folder`.

    Raises UserError if `folder` holds no run, or one of another version of this project.
    """
    file = Path(folder) / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"{folder} is not a run folder (it has no config.yaml); "
            "a run's folder is outputs/train/<run>"
        )
    try:
        config = OmegaConf.load(file)
        plain = OmegaConf.to_container(config)
    except Exception as error:  # of YAML, of OmegaConf, of decoding the text
        raise UserError(f"{file} is corrupt: {error}") from error
    if not isinstance(config, DictConfig) or config.pop("run_format", 1) != FORMAT:
        raise UserError(f"{folder} was written by another version of this project{_commit(folder)}")
    check_targets(plain)
    return config


def _commit(folder: str | Path) -> str:
    """Which version wrote a run, and what to do, as far as its run.json says."""
    file = Path(folder) / "run.json"
    try:
        commit = json.loads(file.read_text())["git_commit"]
    except (OSError, ValueError, KeyError, TypeError):
        return ": check out that version to use it, or train it again"
    return f", git commit {commit}: check that commit out to use the run, or train it again"


def check_targets(config: Any, path: str = "") -> None:
    """A stored configuration may only build classes of this project, torch and Lightning."""
    if isinstance(config, dict):
        items = list(config.items())
    elif isinstance(config, list):
        items = list(enumerate(config))
    else:
        return
    for key, value in items:
        if key == "_target_" and not str(value).startswith(TRUSTED):
            allowed = ", ".join(f"{prefix}*" for prefix in TRUSTED)
            raise UserError(f"{path}_target_={value}: a stored run may only build {allowed}")
        check_targets(value, f"{path}{key}.")


def find_checkpoint(run: str | Path, name: str) -> Path:
    """The file of the checkpoint `best` or `last`; `last` is the newest that is intact.

    Raises UserError if the run has not saved one, or if it is corrupt.
    """
    names = ["last", "previous"] if name == "last" else [name]
    candidates = [Path(run) / "checkpoints" / f"{each}.ckpt" for each in names]
    files = [file for file in candidates if file.is_file()]
    if not files:
        raise UserError(f"{run} has no checkpoints/{name}.ckpt: the run ended before it saved one")
    for file in files:
        if _is_intact(file):
            if file != files[0]:
                log.warning("%s is corrupt; using %s, the newest intact one", files[0], file)
            return file
    raise UserError(f"checkpoint {' and '.join(map(str, files))} is corrupt or incomplete")


def _is_intact(file: Path) -> bool:
    """A checkpoint is a zip archive, which holds a checksum of each part."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


def flatten(config: Any, path: str = "") -> dict[str, Any]:
    """{"optimizer.lr": 0.01, …} of nested dicts; lists become tuples."""
    if not isinstance(config, dict):
        return {path: _freeze(config)}
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flatten(value, f"{path}.{key}" if path else str(key))
    return values


def _freeze(value: Any) -> Any:
    return tuple(_freeze(inner) for inner in value) if isinstance(value, list) else value
