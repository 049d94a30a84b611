"""Kills and signals at random moments, and the comparison of the results."""

import functools
import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crashing.runs import TARGETS, Run

_DEADLINE_S = 900  # per command
_SIGNAL_S = 10  # from a signal to the exit


class Campaign:
    """A series of kills and signals that counts its failures."""

    def __init__(self, config: str, folder: Path, seed: int):
        self._config, self._folder, self._draw = config, folder, random.Random(seed)
        self._expected: dict[str, dict[str, Any]] = {}
        self._seconds: dict[str, float] = {}
        self.failures = 0

    def kills(self, name: str, count: int) -> None:
        """Kills a target `count` times and compares each completed run."""
        self._run_undisturbed(name)
        moments = {"any": 0, "saving": 0, "compiling": 0, "ending": 0}
        compared, run = 0, self._new_run(name, 0)
        for moment in itertools.cycle(moments):
            if sum(moments.values()) == count:
                break
            start = time.monotonic()
            if self._kill(run, moment, self._seconds[name]):
                moments[moment] += 1
            else:  # the run completed before the kill
                self._seconds[name] = (self._seconds[name] + time.monotonic() - start) / 2  # kill earlier
                self._compare(name, run)
                compared, run = compared + 1, self._new_run(name, compared + 1)
        if run.folder.exists():
            self._finish(name, run)
            compared += 1
        text = ", ".join(f"{number} {moment}" for moment, number in moments.items())
        say(f"{name}: {count} kills ({text}), {compared} runs compared")

    def signals(self, name: str, count: int) -> None:
        """Sends SIGTERM, SIGINT and two SIGINTs alternately, during training."""
        self._run_undisturbed(name)
        run = self._new_run(name, "signalled")
        for index in range(count):
            numbers = ((signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT))[index % 3]
            process, before = run.start(), run.epochs()
            if _wait_for(process, functools.partial(run.has_epochs, before + 1)):
                time.sleep(self._draw.uniform(0, 0.3))
            start = time.monotonic()
            for number in numbers:
                process.send_signal(number)
                time.sleep(0.05)
            status, seconds = process.wait(_DEADLINE_S), time.monotonic() - start
            names = " and ".join(number.name for number in numbers)
            say(f"{names}: status {status} after {seconds:.1f} s, {run.epochs()} epochs recorded")
            self._check(seconds < _SIGNAL_S, f"{names}: exit after {seconds:.1f} s")
            self._check(status in (128 + numbers[0], 0), f"{names}: status {status}")  # 0: already complete
            if status == 0:
                shutil.rmtree(run.folder)
        self._finish(name, run)

    def _new_run(self, name: str, attempt: int | str) -> Run:
        return Run(TARGETS[name], self._config, self._folder / name / str(attempt))

    def _run_undisturbed(self, name: str) -> None:
        if name in self._expected:
            return
        run, start = self._new_run(name, "undisturbed"), time.monotonic()
        self._check(run.start().wait(_DEADLINE_S) == 0, f"{run.folder} fails without interruption")
        self._seconds[name] = time.monotonic() - start
        self._expected[name] = run.outcome()
        say(f"{name}: {self._seconds[name]:.0f} s without interruption")

    def _kill(self, run: Run, moment: str, seconds: float) -> bool:
        """Starts a run and kills it; returns False if it completes first."""
        process = run.start(cold=moment == "compiling")
        events: dict[str, Callable[[], bool]] = {"saving": run.is_saving, "ending": run.is_ending}
        if moment in events:
            _wait_for(process, events[moment])
            time.sleep(self._draw.uniform(0, 0.1 if moment == "saving" else 2))
        else:
            _wait_for(process, lambda: False, self._draw.uniform(0, seconds))
        if process.poll() is not None:
            self._check(process.returncode == 0, f"{run.folder} fails with status {process.returncode}")
            return False
        if run.target.runs and self._draw.random() < 0.5:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True

    def _finish(self, name: str, run: Run) -> None:
        self._check(run.start().wait(_DEADLINE_S) == 0, f"{run.folder} fails")
        self._compare(name, run)

    def _compare(self, name: str, run: Run) -> None:
        found = run.outcome()
        for part, value in self._expected[name].items():
            self._check(found.get(part) == value, f"{run.folder}: {part} differs from the uninterrupted run's")

    def _check(self, holds: bool, text: str) -> None:
        if not holds:
            self.failures += 1
            say(f"FAILED: {text}")


def _wait_for(process: subprocess.Popen[bytes], event: Callable[[], bool], seconds: float = _DEADLINE_S) -> bool:
    """Waits for an event, `seconds` at most, and returns whether it preceded the end of the process."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if event():
            return True
        time.sleep(0.002)
    return False


def say(text: str) -> None:
    """Prints a message and flushes it, so that it appears at once in files too."""
    print(text, flush=True)
