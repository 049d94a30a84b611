"""The exceptions that end a run with one line and no traceback, and the line about an unknown name."""

import difflib
import signal
from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend; its text is one line: what is wrong, the value seen, what to do.

    The command line prints the text and leaves with status 2; library callers catch it as any exception.
    """


class RunFailedError(Exception):
    """A run that went wrong by itself (a loss that is not finite); the command line leaves with status 1."""


class OutOfMemoryError(Exception):
    """A device or the machine has no memory left; the text says which settings to lower.

    The command line leaves with status 1. One process of several can come to it alone.
    """


class StoppedError(Exception):
    """A run that was told to stop and has saved its state; the command line leaves with 128 + the signal."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command goes on from here")
        self.number = number


def choose(key: str, value: str, valid: Sequence[str]) -> None:
    """Refuses a value that is not among the valid ones, which are listed with the nearest first."""
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"unknown {key} {value!r}{hint}; valid: {', '.join(valid)}")
