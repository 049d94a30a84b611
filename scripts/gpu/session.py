"""The time that there is, the processes that spend it, and what they leave."""

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

MOST_BYTES = 15 << 20  # of a file that comes back

_RESULTS, _LOG = "results.json", "log.txt"
_TOLD_OF_A_FAILURE = 30  # lines, in the log
_TO_SAVE_S = 8.0  # between SIGTERM, at which runs save their state, and SIGKILL


def python_path() -> str:
    """Where a process finds the package, the scripts and what this one finds."""
    return os.pathsep.join([str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])


class StepFailedError(Exception):
    """A step has no result; the message says why."""


class Child:
    """A process of a step, with its output in a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path):
        self.log, self.begin, self._process = log, time.monotonic(), process

    def wait(self, until: float) -> int:
        """Its exit status; stopped at `until` on the monotonic clock, with time to save what it has."""
        for end, number in ((until, signal.SIGTERM), (until + _TO_SAVE_S, signal.SIGKILL)):
            try:
                return self._process.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, number)
        return self._process.wait()

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends it now, with the processes that it began."""
        if self.is_running():
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def said(self) -> str:
        """The last line of its output that says something."""
        return next((line.strip() for line in reversed(self.lines()) if line.strip()), "nothing")

    def lines(self) -> list[str]:
        """Its output."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()


class Session:
    """What the steps share.

    Attributes:
        out: the folder of results, of few files.
        scratch: a folder for everything that may be lost: data, runs, compiled programs.
        carried: the folder of what was prepared elsewhere.
        data: the arguments that name CIFAR-10.
        smoke: whether sizes are tiny.
        platform: what JAX computes on, "cpu" or "gpu".
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
            # Several processes share the device while programs are compiled.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    @property
    def until(self) -> float:
        """The end on the monotonic clock, before which everything must be written."""
        return self._begin + 60 * self._minutes if self._minutes else float("inf")

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._begin

    def result(self, step: str) -> dict[str, Any] | None:
        """What a step came to, now or in an earlier session of the same key."""
        return self._results.get(self._key, {}).get(step)

    def keep(self, step: str, result: Mapping[str, Any]) -> None:
        """Writes the result of a step, or of a part of one."""
        self._results.setdefault(self._key, {})[step] = dict(result)
        path = self.out / _RESULTS
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self._results, indent=1) + "\n", encoding="utf-8")
        new.replace(path)

    def say(self, text: str) -> None:
        """Tells the user, and the log."""
        print(text, flush=True)
        with (self.out / _LOG).open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def start(self, name: str, *arguments: str, out: Path | None = None, **environment: str) -> Child:
        """Begins `python …` in a process group of its own.

        Args:
            name: of the file in the scratch that its output goes to.
            arguments: of Python.
            out: where standard output goes instead.
            environment: beside that of the session.
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
        """Runs `python …` to its end, for so many seconds at most; see `start`.

        Raises:
            StepFailedError: it failed, or was stopped.
        """
        child = self.start(name, *arguments, out=out, **environment)
        self.expect(child, name, seconds=seconds)
        return child

    def expect(self, child: Child, name: str, *, seconds: float = float("inf")) -> None:
        """Waits for a child that must succeed, for so many seconds at most.

        Raises:
            StepFailedError: it failed, or was stopped.
        """
        status = child.wait(min(self.until - _TO_SAVE_S, time.monotonic() + seconds))
        if status:
            with (self.out / _LOG).open("a", encoding="utf-8") as log:
                log.writelines(f"    | {line}\n" for line in child.lines()[-_TOLD_OF_A_FAILURE:])
            raise StepFailedError(f"{name}: exit status {status}: {child.said()}")

    def end_children(self) -> None:
        """Ends every process that is still there."""
        for child in self._children:
            child.kill()
