"""Launching of runs in separate processes: sequential or concurrent, resumable, with isolated failures.

When the parent process ends, even if it is killed, its runs save their states and stop.
"""

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from cudfkd_jax import report
from cudfkd_jax.evaluation.summary import SUMMARY, read_summary
from cudfkd_jax.experiments.display import Cell, Display, Durations
from cudfkd_jax.runtime.errors import RunFailedError, StoppedError, UserError
from cudfkd_jax.runtime.signals import raise_on_signals
from cudfkd_jax.storage import workdir
from cudfkd_jax.training.progress import duration

T = TypeVar("T")

_PATIENCE_S = 60.0  # for a run of an earlier command to stop


class Outcome(NamedTuple):
    """The outcome of a run: its `summary.json`, or an error message."""

    cell: Cell
    summary: dict[str, Any] | None
    error: str = ""


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int = 1,
    say: Callable[[str], None] = print,
    durations: Durations | None = None,
) -> list[Outcome]:
    """Runs the unfinished cells; a failed run does not affect the others.

    Args:
        cells: in the order in which they start and are returned.
        jobs: number of concurrent runs, on the same devices.
        say: prints messages for the user.
        durations: learns those of the finished runs; by default it knows none but theirs.

    Raises:
        StoppedError: on Ctrl-C or another signal to stop, after the runs have saved their states.
    """
    durations = durations or Durations()
    waiting = [cell for cell in cells if not finished(cell)]
    if len(waiting) < len(cells):
        say(f"{len(cells) - len(waiting)} of {len(cells)} runs are finished already")
        for cell in cells:
            if cell not in waiting and not cell.recorded and (wall_s := read_summary(cell.results).get("wall_s")):
                durations.learn(cell, wall_s)  # but of a recorded run, which may be of another machine
    done, lock, display = 0, threading.Lock(), Display(waiting, jobs, durations, say)
    leash, held = (os.fdopen(end, mode, buffering=0) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))

    def run(cell: Cell) -> Outcome:
        nonlocal done
        if held.closed:
            return Outcome(cell, None, "not begun")
        display.begin(cell)
        start = time.monotonic()
        outcome = _run(cell, leash)
        with lock:
            done += 1
            if outcome.summary is not None:  # of a resumed run the summary counts the time before, too
                durations.learn(cell, max(time.monotonic() - start, outcome.summary["wall_s"]))
            result = "stopped" if held.closed and outcome.summary is None else _result(outcome)
            display.end(cell, f"run {done}/{len(waiting)}  {cell.name}  {result}")
        return outcome

    with leash, held, display, concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool, raise_on_signals():
        try:
            outcomes = dict(zip(waiting, pool.map(run, waiting), strict=True))
        except (KeyboardInterrupt, StoppedError) as error:
            held.close()  # stops the runs; the pool waits for them
            display.stop("stopping: the runs save their states; press Ctrl-C again to quit without waiting")
            raise error if isinstance(error, StoppedError) else StoppedError(signal.SIGINT) from None
    for cell in cells:
        if cell not in waiting and not cell.part and not cell.recorded:
            _complete(cell, say)
    return [outcomes.get(cell) or Outcome(cell, read_summary(cell.results)) for cell in cells]


def check_finished(outcomes: Sequence[Outcome]) -> None:
    """Raises if any run failed.

    Raises:
        RunFailedError: at least one run has no summary.
    """
    failed = sum(outcome.summary is None for outcome in outcomes)
    if failed:
        raise RunFailedError(f"{failed} of {len(outcomes)} runs failed; the same command tries them again")


def finished(cell: Cell) -> bool:
    """Returns whether a run is finished."""
    return (cell.results / SUMMARY).exists()


def elsewhere(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a module-level function in a separate process, which frees its devices and memory on exit.

    Raises:
        RunFailedError: the process was killed.
        Exception: any error of the function.
    """
    spawn = multiprocessing.get_context("spawn")
    try:
        with concurrent.futures.ProcessPoolExecutor(1, spawn, initializer=_end_with_parent) as pool:
            return pool.submit(function, *arguments).result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise RunFailedError("a process that this one began was killed, for want of memory perhaps") from error


def _end_with_parent() -> None:
    """Makes this process exit with its parent; otherwise it would wait for tasks indefinitely."""
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _run(cell: Cell, leash: IO[bytes]) -> Outcome:
    """Runs a cell to its end, or until `leash` closes."""
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    log = cell.log
    command = [sys.executable, "-m", "cudfkd_jax.experiments.child", *cell.arguments, f"--workdir={cell.folder}"]
    _wait_for_the_last(cell.folder)
    with log.open("a", encoding="utf-8") as stream:
        status = subprocess.run(
            command, stdin=leash, stdout=stream, stderr=subprocess.STDOUT, check=False
        ).returncode
    if status == 0:
        return Outcome(cell, read_summary(cell.results))
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith("cudfkd: ")), f"exit status {status}")
    return Outcome(cell, None, f"{said.removeprefix('cudfkd: ')} ({log})")


def _complete(cell: Cell, say: Callable[[str], None]) -> None:
    """Writes the report of a finished run whose process stopped before writing it."""
    try:
        report.write_missing(cell.folder)
    except UserError as error:
        say(f"{cell.name}: no {report.REPORT}: {error}")


def _wait_for_the_last(folder: Path) -> None:
    """Waits, with a timeout, for the run of a command killed just now to save its state."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        try:
            return workdir.check_free(folder)
        except UserError:
            time.sleep(0.1)


def _result(outcome: Outcome) -> str:
    if outcome.summary is None:
        return f"failed: {outcome.error}"
    network = outcome.summary.get("student") or outcome.summary["network"]
    name = next(name for name in ("acc1_last", "acc1", "agree1_synthetic") if name in network)
    return f"{name} {network[name]:.2f} in {duration(outcome.summary['wall_s'])}"
