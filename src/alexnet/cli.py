"""The command line: Hydra around each command, checks of its options, errors in one line.

Imports neither torch nor Lightning, so that `--help` and a misspelled option answer at once. A
command's task is called with options of the right types; what a user can fix is raised as UserError
anywhere below and printed here, once, for the whole command.
"""

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alexnet.errors import UserError, join_problems
from alexnet.options import find_disabled_groups, find_problems
from alexnet.run_folder import choose_run_folder

CONF = Path(__file__).parents[2] / "conf"
# What the user asked for. Hydra prints errors of its own on several lines, unless this variable is 1,
# when it raises them. So `command` sets it around Hydra and puts it back for the task, whose child
# processes must see the user's choice.
SHOW_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
# The state of the machine and not a bug: no space, quota exceeded, read-only, no permission, …
ENVIRONMENT_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EMFILE,
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
            restore_traceback_choice()
            with one_line_errors():
                check_options(config, name)
                return task(config)

        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"
            register_resolvers()
            with one_line_errors():
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(
                    checked_task
                )()

        return main

    return decorate


def restore_traceback_choice() -> None:
    if not SHOW_TRACEBACKS:
        os.environ.pop("HYDRA_FULL_ERROR", None)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints what a user can fix as one line and exits with code 1; a bug keeps its traceback.

    HYDRA_FULL_ERROR=1 shows every traceback.
    """
    try:
        yield
    except Exception as error:
        message = _explain(error)
        if message is None or SHOW_TRACEBACKS:
            raise
        print("error: " + " ".join(message.split()), file=sys.stderr)
        logging.shutdown()
        sys.exit(1)


def _explain(error: Exception) -> str | None:
    """The message of an error that the user can fix; None for a bug."""
    cause: BaseException | None = error
    while cause is not None:  # Hydra wraps what is raised while it builds an object
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__
    if isinstance(error, OSError) and error.errno in ENVIRONMENT_ERRORS:
        return (
            f"{error.strerror}: {error.filename or 'the disk'}; choose another folder or mend this"
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        return str(error)
    return None


def check_options(config: DictConfig, name: str) -> None:
    """Raises UserError that lists all options whose value can't be used."""
    hydra_config = HydraConfig.get()
    problems = find_disabled_groups(config, dict(hydra_config.runtime.choices))
    if not hydra_config.job_logging:
        problems.append("hydra/job_logging=disabled leaves no log to report to: leave it out")
    problems += find_problems(config, name, lightning=False)
    if problems:
        raise UserError(join_problems(problems))
