"""Interruptions of a run's steps: signals and due checkpoints."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from cudfkd_jax.runtime import processes
from cudfkd_jax.runtime.errors import StoppedError

_STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # of a person, a closed terminal, a batch system


class Signals:
    """A context that only records the first signal to stop; a second SIGINT interrupts at once.

    The signals are SIGINT, SIGTERM, and unless they are ignored, as by nohup, SIGHUP and SIGUSR1.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may handle signals
        for number in (signal.SIGINT, *_not_ignored()):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Makes the signals that stop a run raise `StoppedError` in the main thread, as Ctrl-C KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError(number)

    previous = {number: signal.signal(number, stop) for number in _not_ignored()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _not_ignored() -> list[signal.Signals]:
    """Returns the signals that stop a run; SIGTERM always does."""
    return [n for n in _STOPPING if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]


class Watch:
    """Decides whether to interrupt the steps of a run.

    All processes ask after the same steps and get the same answer, so that a signal to one of them stops all.
    """

    def __init__(self, signals: Signals, due: Callable[..., bool]):
        """Takes `due(at_epoch_end=...)`, which returns whether a checkpoint is due."""
        self._signals, self._due = signals, due

    def interrupts(self, *, at_epoch_end: bool = False) -> bool:
        """Returns whether to save the state now."""
        now = self._signals.received is not None or self._due(at_epoch_end=at_epoch_end)
        return bool(processes.largest(int(now)))

    def stop_if_told(self) -> None:
        """Stops the run if a signal was received; call it after saving the state.

        Raises:
            StoppedError: a signal was received; the error names it.
        """
        number = processes.largest(self._signals.received or 0)
        if number:
            raise StoppedError(number)
