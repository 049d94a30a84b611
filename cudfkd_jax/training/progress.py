"""Progress of a run: a bar on a terminal, plain lines elsewhere, and TensorBoard events."""

import contextlib
import errno
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

from cudfkd_jax.storage.records import Record

if TYPE_CHECKING:
    from cudfkd_jax.training.events import Events

_SHOWN = ("synthesis_loss", "student_loss", "loss", "acc1", "agree1")


class Progress:
    """Context manager that shows the progress of a stage of `epochs * steps_per_epoch` steps, if `shown`."""

    def __init__(
        self,
        stage: str,
        *,
        epochs: int,
        steps_per_epoch: int,
        first_step: int,
        tensorboard: Path | None,
        shown: bool = True,
    ):
        self._stage, self._epochs, self._steps_per_epoch, self._shown = stage, epochs, steps_per_epoch, shown
        self._bar: tqdm | None = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(
                total=epochs * steps_per_epoch,
                initial=first_step,
                desc=f"{stage} epoch {first_step // steps_per_epoch + 1}/{epochs}",
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,
            )
        self._events: Events | None = None
        if shown and tensorboard is not None:
            self._events = _events(tensorboard, first_step // steps_per_epoch + 1)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()

    def step(self, step: int) -> None:
        """Moves the bar to a step counted from the start of the run."""
        if self._bar is not None:
            epoch = min(step // self._steps_per_epoch + 1, self._epochs)
            with self._terminal():
                self._bar.set_description(f"{self._stage} epoch {epoch}/{self._epochs}", refresh=False)
                self._bar.update(step - self._bar.n)

    def epoch(self, record: Record) -> None:
        """Shows the results of an epoch."""
        shown = {key: f"{record[key]:.4g}" for key in _SHOWN if key in record}
        if self._bar is not None:
            with self._terminal():
                self._bar.set_postfix(shown)
        elif self._shown:
            text = "  ".join(f"{key} {value}" for key, value in shown.items())
            left = (self._epochs - record["epoch"]) * (record["seconds"] + record["evaluation_seconds"])
            self.say(f"{self._stage}  epoch {record['epoch']}/{self._epochs}  {text}  {duration(left)} left")
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
                tqdm.write(text)
            elif self._shown:
                print(text, flush=True)

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


def duration(seconds: float) -> str:
    """Formats a duration as "7 s", "3 min 05 s" or "2 h 10 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _events(folder: Path, first_epoch: int) -> "Events":
    from cudfkd_jax.training.events import Events  # takes a second, if PyTorch is installed

    return Events(folder, first_epoch)
