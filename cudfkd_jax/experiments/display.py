"""What the user sees of several runs while they run: their epochs, their logs and the time left."""

import contextlib
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import records
from cudfkd_jax.storage.files import read_object
from cudfkd_jax.storage.workdir import CONFIG
from cudfkd_jax.training.progress import duration
from cudfkd_jax.training.trainer import METRICS

_REDRAW_S, _TURN_S = 1.0, 3.0  # the line is drawn anew, and turns to the next of concurrent runs
_SPARSE_S = 300.0  # between lines where no terminal shows one that is drawn anew
_OF_ONE_RUN = ("--config.seed=", "--config.teacher.checkpoint=")  # arguments that do not change a run's duration


class Cell(NamedTuple):
    """One run with its workdir.

    Attributes:
        name: the name shown to the user.
        folder: its workdir; its output goes to `<folder>.log` beside it.
        arguments: the command line without `--workdir`.
        part: the workdir's subfolder with the results of its stage; "" for a distilled student.
        recorded: whether the folder contains only an earlier run's results, and is read-only.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]
    part: str = ""
    recorded: bool = False

    @property
    def results(self) -> Path:
        """The folder of its stage's results."""
        return self.folder / self.part

    @property
    def log(self) -> Path:
        """The file with its output."""
        return self.folder.with_name(self.folder.name + ".log")


class Epochs(NamedTuple):
    """How far a run is: its finished epochs, their number in all, and the seconds of one without compilation."""

    done: int
    total: int
    seconds: float | None


def read_epochs(cell: Cell) -> Epochs | None:
    """Reads how far a run is from its files; None before it has written them."""
    try:
        total = read_object(cell.results / CONFIG, "", "config")[f"{cell.part or 'distill'}.epochs"]
        done = records.read(cell.results / METRICS)
        # The first epoch compiles.
        seconds = [record["seconds"] + record["evaluation_seconds"] for record in done[1:]]
        return Epochs(len(done), int(total), statistics.median(seconds) if seconds else None)
    except (UserError, OSError, KeyError, TypeError, ValueError):  # no file yet, or one that is being written
        return None


class Durations:
    """Predicts the durations of runs, in seconds, from those of finished ones and from estimates.

    Runs that differ in their seeds alone take equally long. Estimates are scaled by how long the finished runs
    took beside theirs.
    """

    def __init__(self, estimates: Mapping[Path, float] | None = None):
        """Takes the estimated seconds of runs by their folders."""
        self._estimates = dict(estimates or {})
        self._taken: dict[Cell, float] = {}

    def learn(self, cell: Cell, seconds: float) -> None:
        """Notes the duration of a finished run."""
        self._taken[cell] = seconds

    def predict(self, cell: Cell) -> float | None:
        """Returns the duration of a run; None if nothing is known about any like it."""
        taken = dict(self._taken)
        if same := [seconds for other, seconds in taken.items() if _kind(other) == _kind(cell)]:
            return statistics.fmean(same)
        if cell.folder in self._estimates:
            both = [other for other in taken if other.folder in self._estimates]
            estimated = sum(self._estimates[other.folder] for other in both)
            factor = sum(taken[other] for other in both) / estimated if both else 1.0
            return self._estimates[cell.folder] * factor
        alike = [seconds for other, seconds in taken.items() if other.part == cell.part]
        return statistics.fmean(alike) if alike else None

    def left(self, running: Mapping[Cell, float], waiting: Sequence[Cell], jobs: int) -> float | None:
        """Returns the seconds until all runs are finished; None while that is unknown.

        Args:
            running: the seconds since the start of each running cell.
            waiting: the cells that have not started.
            jobs: the number of concurrent runs.
        """
        rests: list[float] = []
        totals: list[float] = []  # of the running cells
        for cell, elapsed in running.items():
            at, whole = read_epochs(cell), self.predict(cell)
            if at and at.seconds is not None:
                rests.append((at.total - at.done) * at.seconds)
                totals.append(at.total * at.seconds)
            elif whole is not None:
                rests.append(max(whole - elapsed, 0.0))
            else:
                return None
        for cell in waiting:
            whole = self.predict(cell)
            if whole is None and not totals:
                return None
            at = read_epochs(cell)  # of an earlier command
            done = at.done / at.total if at else 0.0
            rests.append((1 - done) * (statistics.fmean(totals) if whole is None else whole))
        return max(sum(rests) / min(jobs, max(len(rests), 1)), max(rests, default=0.0))


def _kind(cell: Cell) -> tuple[str, ...]:
    return (cell.part, *(text for text in cell.arguments if not text.startswith(_OF_ONE_RUN)))


class Display:
    """Context manager that shows the running cells: one line drawn anew on a terminal, sparse lines elsewhere."""

    def __init__(self, cells: Sequence[Cell], jobs: int, durations: Durations, say: Callable[[str], None]):
        """Takes the cells that will run, and `say`, which prints a line that stays."""
        self._waiting, self._jobs, self._durations, self._say = list(cells), jobs, durations, say
        self._total = len(cells)
        self._begun: dict[Cell, float] = {}  # the running cells
        self._told: dict[Cell, int] = {}  # epochs
        self._on_terminal = sys.stderr.isatty()
        self._lock, self._ended, self._drawn = threading.RLock(), threading.Event(), False
        self._stopping = False

    def __enter__(self) -> "Display":
        threading.Thread(target=self._keep_showing, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ended.set()
            self._clear()

    def begin(self, cell: Cell) -> None:
        """Shows that a cell starts."""
        with self._lock:
            self._waiting.remove(cell)
            self._begun[cell] = time.monotonic()
            if not self._on_terminal:
                number = self._total - len(self._waiting)
                self.say(f"run {number}/{self._total}  {cell.name}  started, log {cell.log}")

    def end(self, cell: Cell, text: str) -> None:
        """Shows a line on a cell that has ended, and the time left."""
        with self._lock:
            del self._begun[cell]
            left = self._left() if self._begun or self._waiting else None
            self.say(text + (f"  about {duration(left)} left" if left is not None else ""))

    def stop(self, text: str) -> None:
        """Shows that the cells have been told to stop."""
        with self._lock:
            self._stopping = True
            self.say(text)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        with self._lock:
            self._clear()
            self._say(text)

    def _keep_showing(self) -> None:
        last, start = time.monotonic(), time.monotonic()
        while not self._ended.wait(_REDRAW_S):
            now = time.monotonic()
            with self._lock, contextlib.suppress(OSError):  # a terminal or pipe that is gone; the runs go on
                if self._ended.is_set() or self._stopping:
                    continue
                if self._on_terminal:
                    self._draw(int((now - start) / _TURN_S))
                elif now - last >= _SPARSE_S:
                    last = now
                    self._tell()

    def _draw(self, turn: int) -> None:
        cells = list(self._begun)
        if not cells:
            return
        left = self._left()
        cell = cells[turn % len(cells)]
        number = self._total - len(self._waiting) - len(cells) + cells.index(cell) + 1
        start = f"{number}/{self._total}  {cell.name}{_at(read_epochs(cell))}"
        end = f"  {duration(left)} left" if left is not None else ""
        room = shutil.get_terminal_size().columns - 1
        log = f"  {cell.log}"
        if len(start + log + end) > room:
            log = f"  …{str(cell.log)[len(start + end) + 3 - room :]}" if room > len(start + end) + 12 else ""
        sys.stderr.write(f"\r\x1b[K{(start + end + log)[:room]}")
        sys.stderr.flush()
        self._drawn = True

    def _tell(self) -> None:
        """Prints a line for each running cell with new epochs."""
        left = self._left()
        for cell in list(self._begun):
            at = read_epochs(cell)
            if at and at.done > self._told.get(cell, 0):
                self._told[cell] = at.done
                end = f"  about {duration(left)} left" if left is not None else ""
                self.say(f"{cell.name}{_at(at)}{end}")

    def _left(self) -> float | None:
        now = time.monotonic()
        running = {cell: now - begun for cell, begun in self._begun.items()}
        return self._durations.left(running, self._waiting, self._jobs)

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


def _at(epochs: Epochs | None) -> str:
    return f"  epoch {min(epochs.done + 1, epochs.total)}/{epochs.total}" if epochs else ""
