"""The session: its time limit, child processes and results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

MOST_BYTES = 15 << 20  # per file in the folder of results

_RESULTS, _LOG = "results.json", "log.txt"
_TOLD_OF_A_FAILURE = 30  # lines of output in the log
_TO_SAVE_S = 8.0  # between SIGTERM, at which runs save their state, and SIGKILL


def python_path() -> str:
    """Returns the PYTHONPATH of a child: the package, the scripts and this process's PYTHONPATH."""
    return os.pathsep.join([str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])


class StepFailedError(Exception):
    """A step failed; the message is the reason."""


class Child:
    """A child process whose output goes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path):
        self.log, self.begin, self._process = log, time.monotonic(), process

    def wait(self, until: float) -> int:
        """Returns the exit status; stops the process at `until` on the monotonic clock, with time to save."""
        for end, number in ((until, signal.SIGTERM), (until + _TO_SAVE_S, signal.SIGKILL)):
            try:
                return self._process.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, number)
        return self._process.wait()

    def is_running(self) -> bool:
        """Returns whether the process is still running."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kills the process and its children."""
        if self.is_running():
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def said(self) -> str:
        """Returns the last non-empty line of the output."""
        return next((line.strip() for line in reversed(self.lines()) if line.strip()), "nothing")

    def lines(self) -> list[str]:
        """Returns the lines of the output."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()


class Session:
    """State shared by the steps.

    Attributes:
        out: the folder of results, with few files.
        scratch: the folder of temporary files: data, runs, compiled programs.
        carried: the folder of files prepared elsewhere.
        data: the arguments that name CIFAR-10.
        smoke: whether sizes are tiny.
        platform: JAX's platform, "cpu" or "gpu".
    """

    def __init__(
        self,
        *,
        out: Path,
        scratch: Path,
        carried: Path,
        data: Sequence[str],
        key: str,
        minutes: float,
        smoke: bool,
        platform: str,
    ):
        self.out, self.scratch, self.carried, self.data = out, scratch, carried, tuple(data)
        self.smoke, self.platform = smoke, platform
        self._begin, self._minutes, self._key, self._children = time.monotonic(), minutes, key, list[Child]()
        out.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(parents=True, exist_ok=True)
        path = out / _RESULTS
        if not path.exists() and (carried / _RESULTS).exists():
            shutil.copy(carried / _RESULTS, path)
        self._results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        self._environment = os.environ | {
            "PYTHONPATH": python_path(),
            "PYTHONUNBUFFERED": "1",
            "JAX_COMPILATION_CACHE_DIR": str(scratch / "xla"),
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
            # Several processes share the device during compilation.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }

    @property
    def left(self) -> float:
        """The remaining seconds."""
        return self.until - time.monotonic()

    @property
    def until(self) -> float:
        """The deadline for all results, on the monotonic clock."""
        return self._begin + 60 * self._minutes if self._minutes else float("inf")

    @property
    def elapsed(self) -> float:
        """The seconds since the session started."""
        return time.monotonic() - self._begin

    def result(self, step: str) -> dict[str, Any] | None:
        """Returns a step's result, from this or an earlier session with the same key."""
        return self._results.get(self._key, {}).get(step)

    def keep(self, step: str, result: Mapping[str, Any]) -> None:
        """Writes the result of a step or of a part of it."""
        self._results.setdefault(self._key, {})[step] = dict(result)
        path = self.out / _RESULTS
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self._results, indent=1) + "\n", encoding="utf-8")
        new.replace(path)

    def say(self, text: str) -> None:
        """Prints a message and appends it to the log."""
        print(text, flush=True)
        with (self.out / _LOG).open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def start(self, name: str, *arguments: str, out: Path | None = None, **environment: str) -> Child:
        """Starts `python …` in a new process group.

        Args:
            name: names the output file in the scratch folder.
            arguments: for Python.
            out: receives standard output instead.
            environment: added to the session's.
        """
        log = self.scratch / f"{name.replace('/', '_')}.log"
        log.write_bytes(b"")
        with log.open("ab") as stream, (out or log).open("ab") as standard:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=self._environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=standard,
                stderr=stream,
                start_new_session=True,
            )
        self._children.append(Child(process, log))
        return self._children[-1]

    def call(
        self,
        name: str,
        *arguments: str,
        seconds: float = float("inf"),
        out: Path | None = None,
        **environment: str,
    ) -> Child:
        """Runs `python …` to its end, for at most `seconds`; see `start`.

        Raises:
            StepFailedError: the process failed or was stopped.
        """
        child = self.start(name, *arguments, out=out, **environment)
        self.expect(child, name, seconds=seconds)
        return child

    def expect(self, child: Child, name: str, *, seconds: float = float("inf")) -> None:
        """Waits for a child that must succeed, for at most `seconds`.

        Raises:
            StepFailedError: the child failed or was stopped.
        """
        status = child.wait(min(self.until - _TO_SAVE_S, time.monotonic() + seconds))
        if status:
            with (self.out / _LOG).open("a", encoding="utf-8") as log:
                log.writelines(f"    | {line}\n" for line in child.lines()[-_TOLD_OF_A_FAILURE:])
            raise StepFailedError(f"{name}: exit status {status}: {child.said()}")

    def end_children(self) -> None:
        """Kills all running children."""
        for child in self._children:
            child.kill()
