"""Many runs, each a process of its own: one after another or a few at a time, resumable, failures kept apart.

A run ends with the process that began it: it is stopped and saves its state, also where that one was killed.
"""

import concurrent.futures
import concurrent.futures.process
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from cudfkd_jax import report
from cudfkd_jax.evaluation.summary import SUMMARY
from cudfkd_jax.runtime.errors import RunFailedError, StoppedError, UserError
from cudfkd_jax.runtime.signals import raise_on_sigterm
from cudfkd_jax.storage import workdir
from cudfkd_jax.training.progress import duration

T = TypeVar("T")

_PATIENCE_S = 60.0  # with a run that the command before this one has left behind, and that is being stopped


class Job(NamedTuple):
    """One run.

    Attributes:
        name: shown to the user.
        folder: its workdir; its output goes to a file beside it, `<folder>.log`.
        arguments: of the command line, without `--workdir`.
        part: the folder in the workdir in which its stage leaves what it came to; "" for a distilled student.
        recorded: the folder keeps what an earlier run came to and nothing else, and is not written to.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]
    part: str = ""
    recorded: bool = False


class Outcome(NamedTuple):
    """What a run came to: its `summary.json`, or the line that says why there is none."""

    cell: Job
    summary: dict[str, Any] | None
    error: str = ""


def run_cells(cells: Sequence[Job], *, jobs: int = 1, say: Callable[[str], None] = print) -> list[Outcome]:
    """Runs what is not finished yet; a run that fails does not keep the others from running.

    Args:
        cells: in the order in which they are begun and returned.
        jobs: how many run at a time, on the same devices.
        say: told what a user should read.

    Raises:
        KeyboardInterrupt, StoppedError: Ctrl-C or SIGTERM; the runs have saved their state.
    """
    waiting = [cell for cell in cells if not finished(cell)]
    if len(waiting) < len(cells):
        say(f"{len(cells) - len(waiting)} of {len(cells)} runs are finished already")
    start, done, lock = time.monotonic(), 0, threading.Lock()
    leash, held = (os.fdopen(end, mode, buffering=0) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))

    def run(cell: Job) -> Outcome:
        nonlocal done
        outcome = Outcome(cell, None, "not begun") if held.closed else _run(cell, leash)
        with lock:
            done += 1
            left = (time.monotonic() - start) / done * (len(waiting) - done)
            say(f"run {done}/{len(waiting)}  {cell.name}  {_result(outcome)}  about {duration(left)} left")
        return outcome

    with leash, held, concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool, raise_on_sigterm():
        try:
            outcomes = dict(zip(waiting, pool.map(run, waiting), strict=True))
        except (KeyboardInterrupt, StoppedError):
            held.close()  # stops them; the pool waits until they are gone
            raise
    for cell in cells:
        if cell not in waiting and not cell.part and not cell.recorded:
            _complete(cell, say)
    return [outcomes.get(cell) or Outcome(cell, read_summary(cell)) for cell in cells]


def check_finished(outcomes: Sequence[Outcome]) -> None:
    """Says at the end of a command that not every run has come to its own.

    Raises:
        RunFailedError: some have not.
    """
    failed = sum(outcome.summary is None for outcome in outcomes)
    if failed:
        raise RunFailedError(f"{failed} of {len(outcomes)} runs failed; the same command tries them again")


def finished(cell: Job) -> bool:
    """Whether a run has come to its end."""
    return (cell.folder / cell.part / SUMMARY).exists()


def read_summary(cell: Job) -> dict[str, Any]:
    """What a finished run wrote.

    Raises:
        UserError: the file is damaged.
    """
    path = cell.folder / cell.part / SUMMARY
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged; remove it, and the same command writes it again") from error


def elsewhere(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function of a module in a process of its own, which takes devices and memory with it when it ends.

    Raises:
        RunFailedError: the process came to no end of its own.
        Exception: what the function raises.
    """
    spawn = multiprocessing.get_context("spawn")
    try:
        with concurrent.futures.ProcessPoolExecutor(1, spawn, initializer=_end_with_parent) as pool:
            return pool.submit(function, *arguments).result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise RunFailedError("a process that this one began was killed, for want of memory perhaps") from error


def _end_with_parent() -> None:
    """Makes this process end when the one that began it is gone; it would wait for more to do for ever."""
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _run(cell: Job, leash: IO[bytes]) -> Outcome:
    """Runs a cell until its end, or that of `leash`."""
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    log = cell.folder.with_name(cell.folder.name + ".log")
    command = [sys.executable, "-m", "cudfkd_jax.experiments.child", *cell.arguments, f"--workdir={cell.folder}"]
    _wait_for_the_last(cell.folder)
    with log.open("a", encoding="utf-8") as stream:
        status = subprocess.run(
            command, stdin=leash, stdout=stream, stderr=subprocess.STDOUT, check=False
        ).returncode
    if status == 0:
        return Outcome(cell, read_summary(cell))
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith("cudfkd: ")), f"exit status {status}")
    return Outcome(cell, None, f"{said.removeprefix('cudfkd: ')} ({log})")


def _complete(cell: Job, say: Callable[[str], None]) -> None:
    """Writes the page of a finished run whose process was stopped before it."""
    try:
        report.write_missing(cell.folder)
    except UserError as error:
        say(f"{cell.name}: no {report.REPORT}: {error}")


def _wait_for_the_last(folder: Path) -> None:
    """Waits for the run of a command that was killed just now to save its state; not for ever."""
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
