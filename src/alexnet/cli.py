"""The command line: Hydra around each command, checks of its options, errors in one line.

Imports neither torch nor Lightning, so that `--help` and a misspelled option answer at once. A
command's task is called with options of the right types; what a user can fix is raised as UserError
anywhere below and printed here, once, for the whole command.
"""

import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial, wraps
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alexnet.errors import UserError, join_problems
from alexnet.options import explain_missing_group, find_disabled_groups, find_problems
from alexnet.run_folder import choose_run_folder

log = logging.getLogger(__name__)
CONF = Path(__file__).parents[2] / "conf"
# What the user asked for. Hydra prints its own errors on several lines unless this variable is 1;
# then it raises them. So `command` sets it to 1 around Hydra, and takes it back for the task and
# for child processes, which must see the user's choice.
TRACEBACK_VARIABLE = "HYDRA_FULL_ERROR"
SHOW_TRACEBACKS = os.environ.get(TRACEBACK_VARIABLE) == "1"
# The state of the machine and not a bug: no space, quota exceeded, read-only, no permission, …
ENVIRONMENT_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EMFILE,
    errno.ENOTDIR,
}
Task = Callable[[DictConfig], Any]


def register_resolvers() -> None:
    """The interpolation that conf/train.yaml uses for the run's folder."""
    OmegaConf.register_new_resolver("run_folder", choose_run_folder, replace=True)


def command(name: str) -> Callable[[Task], Callable[[], None]]:
    """Makes a task the main function of a command with the options of `conf/<name>.yaml`."""

    def decorate(task: Task) -> Callable[[], None]:
        @wraps(task)
        def checked_task(config: DictConfig) -> Any:
            reset_traceback_variable()
            with one_line_errors(name), warnings_in_the_log():
                check_options(config, name)
                return task(config)

        def main() -> None:
            os.environ[TRACEBACK_VARIABLE] = "1"
            register_resolvers()
            run = hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
            try:
                with one_line_errors(name), explain_run_folder():
                    run(checked_task)()
            finally:
                reset_traceback_variable()

        return main

    return decorate


def reset_traceback_variable(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the variable to what the user asked for."""
    if not SHOW_TRACEBACKS:
        environment.pop(TRACEBACK_VARIABLE, None)


@contextmanager
def explain_run_folder() -> Iterator[None]:
    """Hydra makes the run's folder; the task's own errors end inside the task."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} can't be made: choose another folder") from error


@contextmanager
def warnings_in_the_log() -> Iterator[None]:
    """Warnings are lines of the log, without the path of the library that gave them."""

    def show(message: Warning | str, *place: Any, **more: Any) -> None:
        log.warning("%s", message)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Prints what a user of the command `name` can fix as one line, and exits with code 1.

    A bug shows its traceback; with HYDRA_FULL_ERROR=1 every error does.
    """
    try:
        yield
    except Exception as error:
        message = _explain(error, name)
        if message is None or SHOW_TRACEBACKS:
            raise
        print("error: " + " ".join(message.split()), file=sys.stderr)
        logging.shutdown()
        sys.exit(1)


def _explain(error: Exception, name: str) -> str | None:
    """The message of an error that the user can fix; None for a bug."""
    cause: BaseException | None = error
    while cause is not None:  # Hydra wraps what is raised while it builds an object
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in ENVIRONMENT_ERRORS:
            place = cause.filename or "the disk"
            return f"{place}: {cause.strerror}; choose another folder (hydra.run.dir=…)"
        cause = cause.__cause__
    if "Config group override must be a string" in str(error):  # Hydra's, for model=null
        disabled = [text.partition("=")[0] for text in sys.argv[1:] if text.endswith("=null")]
        return join_problems([explain_missing_group(group) for group in disabled])
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _shorten_hydra_message(str(error), name)
    return None


def _shorten_hydra_message(message: str, name: str) -> str:
    """Without search paths; for an unknown option with the options that there are."""
    unknown = re.match(r"Could not override '([\w./]+)'", message)
    if unknown is None:
        return message.split("Config search path")[0]
    group, _, option = unknown[1].rpartition(".")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name)
    known = OmegaConf.select(config, group) if group else config
    keys = [str(key) for key in known] if OmegaConf.is_dict(known) else []
    names = sorted(key for key in keys if not key.startswith("_"))
    similar = get_close_matches(option, names, n=1)
    hint = f"did you mean {similar[0]}? " if similar else ""
    return f"{unknown[0]}, there is no such option: {hint}{group or name} has {', '.join(names)}"


def check_options(config: DictConfig, name: str) -> None:
    """Raises UserError that lists all options whose value can't be used."""
    hydra_config = HydraConfig.get()
    problems = []
    if name == "train":
        problems += find_disabled_groups(config, hydra_config.runtime.choices)
    if "handlers" not in hydra_config.job_logging:
        choice = hydra_config.runtime.choices["hydra/job_logging"]
        problems.append(f"hydra/job_logging={choice} leaves no log to report to: leave it out")
    problems += find_problems(
        config, name, lightning=False, compose_defaults=partial(compose_defaults, name)
    )
    if problems:
        raise UserError(join_problems(problems))


def compose_defaults(name: str) -> DictConfig:
    """The options of a command with the typed choices of groups, but without typed values."""
    hydra_config = HydraConfig.get()
    choices = hydra_config.runtime.choices
    typed = hydra_config.overrides.task
    groups = [text for text in typed if text.partition("=")[0] in choices]
    return compose(name, overrides=groups)
