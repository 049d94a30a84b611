"""The exceptions that end a run with one line and no traceback, and the line about an unknown name."""

import difflib
import signal
from collections.abc import Iterable, Sequence


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
        super().__init__(f"stopped by {signal.Signals(number).name}; rerun the same command to resume")
        self.number = number


def unknown(kind: str, value: str, valid: Iterable[str], more: str = "") -> UserError:
    """Returns the error for a name that is not valid, with the nearest valid one as a suggestion.

    Args:
        kind: of name, such as "distill.loss".
        value: the name that was given.
        valid: the names to list.
        more: further valid forms, in words; ends the list.
    """
    names = list(valid)
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(value.lower(), by_lower, n=1)
    hint = f" (did you mean {by_lower[near[0]]!r}?)" if near else ""
    return UserError(f"unknown {kind} {value!r}{hint}; valid: {', '.join([*names, *filter(None, [more])])}")


def choose(kind: str, value: str, valid: Sequence[str]) -> None:
    """Accepts only one of the valid names.

    Raises:
        UserError: see `unknown`.
    """
    if value not in valid:
        raise unknown(kind, value, valid)
