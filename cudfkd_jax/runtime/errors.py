"""The exceptions that end a run with one line and no traceback, and the check for unknown names."""

import difflib
import signal
from collections.abc import Sequence


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
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command goes on from here")
        self.number = number


def choose(key: str, value: str, valid: Sequence[str]) -> None:
    """Raises UserError unless the value is valid; the message lists the valid ones, the nearest first."""
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"unknown {key} {value!r}{hint}; valid: {', '.join(valid)}")
