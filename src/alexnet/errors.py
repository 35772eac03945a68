"""Errors that the user can fix, and how their messages are put together."""

from collections.abc import Collection, Sequence


class UserError(ValueError):
    """Wrong input. The message names the option or file and the fix.

    Any module raises it; the command line catches it once, prints the message as one line and exits
    with code 1. Every other exception is a bug and shows its traceback.
    """


def join_problems(problems: Sequence[str], limit: int = 5) -> str:
    """The first `limit` problems in one line, and how many more there are."""
    shown = "; ".join(problems[:limit])
    hidden = len(problems) - limit
    return f"{shown}; and {hidden} more" if hidden > 0 else shown


def check_choice(option: str, value: object, choices: Collection[object]) -> None:
    """Raises UserError unless `value` is one of `choices`."""
    if value not in choices:
        names = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise UserError(f"{option}={value} is unknown; choose one of {names}")
