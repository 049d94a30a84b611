"""The exceptions that end a run with one line and no traceback, and the check for unknown names."""

import difflib
import signal
from collections.abc import Iterable, Sequence
from typing import Any


class UserError(Exception):
    """An error that the user can fix; its message is one line: what is wrong, the value seen, what to do.

    The command line prints the message and exits with status 2; library callers catch it like any exception.
    """


class RunFailedError(Exception):
    """A failure within a run, such as a non-finite loss; the command line exits with status 1."""


class OutOfMemoryError(Exception):
    """A device or the machine is out of memory; the message names the settings to lower.

    The command line exits with status 1. It may be raised in one process of several.
    """


class StoppedError(Exception):
    """A run stopped by a signal after saving its state; the command line exits with 128 + the signal."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; rerun the same command to resume")
        self.number = number


def unknown(kind: str, value: str, valid: Iterable[str], more: str = "") -> UserError:
    """Returns the error for a name that is not valid, with the nearest valid one as a suggestion.

    Args:
        kind: the kind of name, such as "distill.loss".
        value: the given name.
        valid: the names to list.
        more: further valid forms, in words; ends the list.
    """
    names = list(valid)
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(value.lower(), by_lower, n=1)
    hint = f" (did you mean {by_lower[near[0]]!r}?)" if near else ""
    return UserError(f"unknown {kind} {value!r}{hint}; valid: {', '.join([*names, *filter(None, [more])])}")


def choose(kind: str, value: str, valid: Sequence[str]) -> None:
    """Checks that a name is valid.

    Raises:
        UserError: the name is not valid; see `unknown`.
    """
    if value not in valid:
        raise unknown(kind, value, valid)


def require(key: str, value: Any, holds: bool, rule: str) -> None:
    """Checks the value of a setting.

    Args:
        key: the setting's dotted key.
        value: shown in the message.
        holds: whether the value is valid.
        rule: what it must be, such as "must not be negative".

    Raises:
        UserError: the value is not valid.
    """
    if not holds:
        raise UserError(f"{key}={value} {rule}; set --config.{key}")
