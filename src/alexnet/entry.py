"""What every door needs before torch is imported: resolvers of `conf/`, checks of the typed options, clear errors."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

TRUSTED = ("alexnet.", "torch.", "lightning.")


OmegaConf.register_new_resolver("or", lambda first, second: first or second, replace=True)


MENDABLE = (ValueError, TypeError, FileNotFoundError, FileExistsError, InstantiationException)


@contextmanager
def clear_errors(kinds: tuple[type[Exception], ...] = MENDABLE) -> Iterator[None]:
    """Turns what a user can mend into one line and exit code 1; HYDRA_FULL_ERROR=1 shows the traceback instead."""
    try:
        yield
    except kinds as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__:
            cause = cause.__cause__
        print("error: " + " ".join(str(cause).split()), file=sys.stderr)
        logging.shutdown()
        sys.exit(1)


@clear_errors()
def check_options(cfg: DictConfig) -> None:
    """Ends with one line if mandatory options are missing or typed values have another type than the default's."""
    hydra = HydraConfig.get()
    typed = [text for text in hydra.overrides.task if "=" in text and text[0] not in "+~"]
    choices = hydra.runtime.choices
    groups = [text for text in typed if text.split("=", 1)[0] in choices]
    defaults = compose(hydra.job.config_name, overrides=groups)
    problems = [f"{key} is missing: give {key}=…" for key in sorted(OmegaConf.missing_keys(cfg))]
    for key in (text.split("=", 1)[0] for text in typed):
        if key in choices:
            continue
        default, value = OmegaConf.select(defaults, key), OmegaConf.select(cfg, key)
        if not _same_type(default, value):
            problems.append(f"{key}={value} must be {_kind(default)}, such as {default}")
    if problems:
        raise ValueError("; ".join(problems))


def _same_type(default: Any, value: Any) -> bool:
    if default is None or value is None or OmegaConf.is_config(default):
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _kind(default: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(type(default), "a value")


def check_targets(cfg: Any, path: str = "") -> None:
    """A configuration read from a file may build only classes of this project, torch and lightning."""
    items = cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, list) else ()
    for key, value in items:
        if key == "_target_" and not str(value).startswith(TRUSTED):
            raise ValueError(f"{path}_target_={value}: a stored run may only build {', '.join(TRUSTED)}…")
        check_targets(value, f"{path}{key}.")


def read_run(folder: str | Path) -> DictConfig:
    """The configuration of a run's folder. Raises FileNotFoundError if it is none."""
    file = Path(folder) / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no run folder (no config.yaml in it); a run's folder is outputs/train/…")
    cfg = OmegaConf.load(file)
    check_targets(OmegaConf.to_container(cfg))
    assert isinstance(cfg, DictConfig)
    return cfg


def checkpoint_file(run: str | Path, name: str) -> Path:
    """`best` or `last` of a run's folder. Raises FileNotFoundError if the run saved none."""
    file = Path(run) / "checkpoints" / f"{name}.ckpt"
    if not file.is_file():
        raise FileNotFoundError(f"{run} has no checkpoints/{name}.ckpt: no epoch of that run ended")
    return file
