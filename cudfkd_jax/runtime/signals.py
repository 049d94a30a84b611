"""Interruptions of a run's steps: signals and due checkpoints."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

from cudfkd_jax.runtime.errors import StoppedError

_STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # of a person, a closed terminal, a batch system
_QUIT = "quit without saving; rerun the same command to resume from its last checkpoint"


class Signals:
    """A context that only records the first signal to stop; a second SIGINT interrupts at once.

    The signals are SIGINT, SIGTERM, and unless they are ignored, as by nohup, SIGHUP and SIGUSR1.

    Python runs handlers of signals between two bytecodes of the main thread only, which may wait minutes for
    compilation or for a compiled epoch. Therefore a second thread answers.
    """

    def __init__(self, on_interrupt: Callable[[], None] = lambda: None) -> None:
        """Takes a function that the second thread calls at the first SIGINT, to tell the user what will happen."""
        self.received: int | None = None
        self._on_interrupt, self._interrupted = on_interrupt, False
        self._previous: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup = -1

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may handle signals
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        threading.Thread(target=self._listen, args=(self._pipe[0],), daemon=True).start()
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in (signal.SIGINT, *_not_ignored()):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._pipe[1])  # ends the second thread, which closes the other end

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted and not _ends_process:
                raise KeyboardInterrupt(_QUIT)
            self._interrupted = True
        self.received = number

    def _listen(self, pipe: int) -> None:
        """Answers each signal, one byte in the pipe, at once."""
        interrupts = 0
        while number := os.read(pipe, 1):
            if number[0] != signal.SIGINT:
                continue
            interrupts += 1
            if interrupts == 1:
                with contextlib.suppress(OSError):  # as for a closed pipe
                    self._on_interrupt()
            elif _ends_process:
                _quit()
        os.close(pipe)


_ends_process = False


def end_process_at_second_interrupt() -> None:
    """Makes a second SIGINT within `Signals` end this process with status 130, even in compiled code.

    It is for commands. Without it, as in a program of the user's or a notebook, KeyboardInterrupt is raised once
    the compiled code returns.
    """
    global _ends_process
    _ends_process = True


def _quit() -> NoReturn:
    below_the_bar = "\n" if sys.stderr.isatty() else ""
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f"{below_the_bar}cudfkd: {_QUIT}\n".encode())
    os._exit(128 + signal.SIGINT)


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
        return bool(_largest(int(now)))

    def stop_if_told(self) -> None:
        """Stops the run if a signal was received; call it after saving the state.

        Raises:
            StoppedError: a signal was received; the error names it.
        """
        number = _largest(self._signals.received or 0)
        if number:
            raise StoppedError(number)


def _largest(number: int) -> int:
    # Imported here: JAX, which takes a second, is not needed for the signals of a command that only prints help.
    from cudfkd_jax.runtime import processes

    return processes.largest(number)
