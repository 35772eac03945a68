"""What every door needs before torch is imported: its options, checks of those typed, clear errors, a run's folder."""

import logging
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

log = logging.getLogger(__name__)
TRUSTED = ("alexnet.", "torch.", "lightning.")
CONF = Path(__file__).parents[2] / "conf"
MENDABLE = (ValueError, TypeError, OSError, InstantiationException)
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"


def _run_folder(resume: str | None, fresh: str) -> str:
    """The folder of the run that is resumed, if it is one; else a new one. `auto` is the newest run without result."""
    if resume == "auto":
        begun = Path(fresh).parent.glob("*/config.yaml")
        folders = (file.parent for file in begun if not (file.parent / "result.json").exists())
        return str(max(folders, key=lambda folder: folder.name, default=fresh))
    return resume if resume and (Path(resume) / "config.yaml").is_file() else fresh


OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)


def door(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Makes a task, configured by `conf/<name>.yaml`, the main function of a door; wrong options end in one line."""

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
        def configured(cfg: DictConfig) -> Any:
            if not TRACEBACKS:
                os.environ.pop("HYDRA_FULL_ERROR", None)
            with clear_errors():
                check_options(cfg)
            return task(cfg)

        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print on several lines
            with clear_errors((HydraException, OmegaConfBaseException)):
                configured()

        return main

    return decorate


@contextmanager
def clear_errors(kinds: tuple[type[Exception], ...] = MENDABLE) -> Iterator[None]:
    """Turns what a user can mend into one line and exit code 1; HYDRA_FULL_ERROR=1 shows the traceback instead."""
    try:
        yield
    except kinds as error:
        if TRACEBACKS:
            raise
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__:
            cause = cause.__cause__
        print("error: " + " ".join(str(cause).split()), file=sys.stderr)
        logging.shutdown()
        sys.exit(1)


def check_options(cfg: DictConfig) -> None:
    """Raises ValueError that lists every mandatory option that is missing, and every typed value of another type than
    the default's."""
    options = HydraConfig.get()
    typed = [text for text in options.overrides.task if "=" in text and text[0] not in "+~"]
    choices = options.runtime.choices
    groups = [text for text in typed if text.split("=", 1)[0] in choices]
    defaults = compose(options.job.config_name, overrides=groups)
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
    """`best` or `last` of a run's folder; `last` is the newest whole one. Raises FileNotFoundError if the run saved
    none, ValueError if it is torn."""
    names = ("last", "previous") if name == "last" else (name,)
    files = [file for n in names if (file := Path(run) / "checkpoints" / f"{n}.ckpt").is_file()]
    if not files:
        raise FileNotFoundError(f"{run} has no checkpoints/{name}.ckpt: that run ended before it saved one")
    whole = next((file for file in files if _is_whole(file)), None)
    if whole is None:
        raise ValueError(f"{' and '.join(map(str, files))} is no whole checkpoint")
    if whole != files[0]:
        log.warning("%s is torn: %s is the newest whole checkpoint", files[0], whole)
    return whole


def _is_whole(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as checkpoint:
            return checkpoint.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False
