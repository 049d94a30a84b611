"""Progress of a run: a bar and a line per epoch (terminal, notebook), lines elsewhere, and TensorBoard events."""

import contextlib
import errno
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

from cudfkd_jax.runtime.compilation import compilation_clock
from cudfkd_jax.storage.records import Record

if TYPE_CHECKING:
    from cudfkd_jax.training.events import Events

_SCORES = {"acc1": "acc@1", "agree1": "agree@1", "agree1_synthetic": "synthetic agree@1"}  # in percent
_LOSSES = ("student_loss", "loss")
_COLUMNS = 80
_TOLD_S = 1.0  # shorter compilation, as from the cache, is not worth a line
_LONG_S = 60.0  # left, for which the end of a stage is announced
_REDRAW_S = 1.0


class Progress:
    """Context manager that shows the progress of a stage of `epochs * steps_per_epoch` steps, if `shown`.

    Compilation is shown apart, and the time left follows from whole rounds of `steps_per_round` steps, after each
    of which the trainer waits for the device.
    """

    def __init__(
        self,
        stage: str,
        *,
        epochs: int,
        steps_per_epoch: int,
        first_step: int,
        tensorboard: Path | None,
        steps_per_round: int = 1,
        shown: bool = True,
    ):
        self._stage, self._epochs, self._steps_per_epoch, self._shown = stage, epochs, steps_per_epoch, shown
        self._first_step = self._step = first_step
        self._clock = compilation_clock()
        self._begun, self._compiled = time.monotonic(), self._clock.seconds()
        self._compiling = True
        self._left = TimeLeft(epochs * steps_per_epoch, steps_per_round, self._clock.working)
        self._left.measure(first_step)
        self._epoch_begun = self._clock.working()
        self._scores, self._announced = "", False
        self._bar: tqdm | None = None
        self._ended = threading.Event()
        if shown:
            self._bar = self._make_bar()
        self._tensorboard = tensorboard if shown else None
        self._events: Events | None = None
        self.rewind(first_step // steps_per_epoch)

    def _make_bar(self) -> tqdm | None:
        """Returns a widget in a notebook that has widgets, tqdm's bar in a terminal, None elsewhere."""
        steps = {"total": self._epochs * self._steps_per_epoch, "initial": self._step}
        if _in_notebook() and importlib.util.find_spec("ipywidgets"):
            from tqdm.auto import tqdm as widget  # imports IPython

            return widget(**steps, bar_format=self._format())
        if not sys.stderr.isatty():
            return None
        threading.Thread(target=self._redraw, daemon=True).start()
        # Given no number of rows, tqdm would hide the bar where a terminal gives no size, as in some containers.
        return tqdm(**steps, bar_format=self._format(), ncols=_width(), nrows=20)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.leave = kind is not None  # the epochs' lines say all about a stage that is over
            with self._terminal():
                self._bar.close()
        if self._events is not None:
            self._events.close()

    def rewind(self, epochs: int) -> None:
        """Begins events after this number of epochs; TensorBoard drops earlier ones of later epochs."""
        if self._events is not None:
            self._events.close()
        if self._tensorboard is not None:
            self._events = _events(self._tensorboard, epochs + 1)

    def step(self, step: int) -> None:
        """Moves the bar to a step counted from the start of the run."""
        self._step = step
        self._left.measure(step)
        is_first = self._compiling and step > self._first_step
        if is_first:
            self._compiling = False
        if self._bar is not None:
            with self._terminal():
                self._bar.bar_format = self._format()
                self._bar.update(step - self._bar.n)
        compiled_s = self._clock.seconds() - self._compiled
        if is_first and compiled_s >= _TOLD_S:
            self.say(f"{self._stage}  compiled in {duration(compiled_s)}")
        self._announce()

    def _announce(self) -> None:
        """Says once, as soon as rounds have been measured, when a stage of more than a minute will end."""
        left = self._left.seconds()
        if self._announced or left is None:
            return
        self._announced = True
        if left >= _LONG_S:
            end = datetime.now() + timedelta(seconds=left)
            self.say(f"{self._stage}  about {duration(left)} left, until {end:%a %H:%M}")

    def epoch(self, record: Record) -> None:
        """Shows the results of an epoch in a line that stays."""
        now = self._clock.working()
        seconds, self._epoch_begun = now - self._epoch_begun, now
        self._scores = _scores(record, ".1f") or self._scores
        took = f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
        left = self._left.seconds()
        if self._bar is None and left is not None and record["epoch"] < self._epochs:
            took += f", {duration(left)} left"
        parts = [self._at(record["epoch"]), _scores(record), _loss(record), took]
        if self._bar is not None and len(_joined(parts)) > _COLUMNS:
            parts.remove(_loss(record))
        self.say(_joined(parts))
        if self._events is not None:
            self._events.scalars(record)

    def pictures(self, epoch: int, pictures: Mapping[str, Path]) -> None:
        """Adds PNG files, by tag, to the events."""
        if self._events is not None:
            self._events.pictures(epoch, pictures)

    def say(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        with self._terminal():
            if self._bar is not None:
                self._bar.write(text)
            elif self._shown:
                print(text, flush=True)

    def _at(self, epoch: int) -> str:
        return f"{self._stage}  epoch {epoch:{len(str(self._epochs))}}/{self._epochs}"

    def _format(self) -> str:
        """Returns tqdm's format of the bar: epoch, accuracy, agreement, bar, time left."""
        epoch = min(self._step // self._steps_per_epoch + 1, self._epochs)
        left, end = self._left.seconds(), ""
        if self._compiling:
            end = f"compiling {duration(time.monotonic() - self._begun)}"
        elif left is not None:
            end = f"{duration(left)} left"
        return f"{_joined([self._at(epoch), self._scores])}  |{{bar}}| {end}"

    def _redraw(self) -> None:
        """Keeps the times of the bar up to date while a step compiles or computes."""
        while not self._ended.wait(_REDRAW_S):
            bar = self._bar
            if bar is None:
                return
            with contextlib.suppress(BrokenPipeError), self._terminal():  # the next line of the run ends it
                bar.bar_format, bar.ncols = self._format(), _width()
                bar.refresh()

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        """Shows nothing more once the terminal is gone: the run goes on, or saves its state at SIGHUP."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            if self._bar is not None:
                self._bar.disable = True
            self._bar, self._shown = None, False


class TimeLeft:
    """Estimates the time to the last step from the rounds measured so far."""

    def __init__(self, steps: int, steps_per_round: int, clock: Callable[[], float]):
        """Takes the number of steps in all, those of a round, and a clock in seconds that compilation stops."""
        self._steps, self._steps_per_round, self._clock = steps, steps_per_round, clock
        self._first: tuple[int, float] | None = None  # step and time
        self._last = (0, 0.0)
        self._pace: float | None = None  # seconds per step

    def measure(self, step: int) -> None:
        """Notes that step `step`, counted from the start of the run, is computed; counts ends of rounds only."""
        if step % self._steps_per_round:
            return
        now = self._clock()
        if self._first is None or step < self._last[0]:  # at the start, and after a rollback
            self._first = step, now
        elif step > self._first[0]:
            self._pace = (now - self._first[1]) / (step - self._first[0])
        self._last = step, now

    def seconds(self) -> float | None:
        """Returns the seconds left; None before the first round is measured."""
        if self._pace is None:
            return None
        step, then = self._last
        return max((self._steps - step) * self._pace - (self._clock() - then), 0.0)


def duration(seconds: float) -> str:
    """Formats a duration as "7 s", "3 min 05 s" or "2 h 10 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _scores(record: Record, form: str = "6.2f") -> str:
    return _joined([f"{name} {record[key]:{form}} %" for key, name in _SCORES.items() if key in record])


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


def _width() -> int:
    """Returns the width of the bar: one less than the terminal's, so that no line wraps."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return (columns or _COLUMNS) - 1


def _loss(record: Record) -> str:
    return next((f"loss {record[key]:.3g}" for key in _LOSSES if key in record), "")


def _joined(parts: list[str]) -> str:
    return "  ".join(filter(None, parts))


def _events(folder: Path, first_epoch: int) -> "Events":
    from cudfkd_jax.training.events import Events  # takes a second, if PyTorch is installed

    return Events(folder, first_epoch)
