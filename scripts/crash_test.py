"""Kills runs at random moments and starts them again, until done: do they end with the bits of one never stopped?

    python scripts/crash_test.py --kills=50 --workdir=runs/crash_test

Each target is run once undisturbed and then again and again under kills (SIGKILL to all of its processes): at any
moment of its life, while a checkpoint is being written, and between the end of training and that of the command,
when the report is written. After each kill the same command is started again; a run that comes to its end before
the next kill is compared, and another one begun. Weights, `metrics.jsonl` and `summary.json` must be equal, times
aside; what differs is named. Targets are stage `all` of some methods, `teacher`, `compare` and `sweep`. With
`--signals=N` so many signals, SIGTERM, SIGINT and two SIGINT at once in turns: the process is to be gone within
10 s with status 143 or 130, and the run to go on from what the first two saved.

`--kills=` in all (50), `--signals=` (6), `--targets=` all or names separated by commas, `--seed=` (0), `--config=`
(tests/tiny.py). Exit status 1 where something differs or a command fails.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_DEADLINE_S = 600  # of one command
_TIMES = {"seconds", "evaluation_seconds", "images_per_s", "wall_s", "peak_memory_mib"}
_MOMENTS = ("any", "saving", "any", "ending")  # in turns
_METHODS = ("cudfkd", "cmi", "pre_dfkd")


@dataclasses.dataclass(frozen=True)
class Target:
    """A command that is killed.

    Attributes:
        command: of a workdir.
        runs: the folders in it that hold runs, by a pattern.
    """

    command: Callable[[str, Path], list[str]]
    runs: str = "."


def _stage(method: str, stage: str) -> Callable[[str, Path], list[str]]:
    return lambda config, folder: [
        *(sys.executable, "-m", "cudfkd_jax.main", f"--config={config}:method={method}", f"--stage={stage}"),
        *(f"--workdir={folder}", "--config.checkpoint.every_seconds=0.5"),
    ]


def _script(name: str, *options: str) -> Callable[[str, Path], list[str]]:
    return lambda config, folder: [
        *(sys.executable, str(_ROOT / "scripts" / f"{name}.py"), f"--config={config}", *options),
        f"--workdir={folder}",
    ]


TARGETS = {
    **{method: Target(_stage(method, "all")) for method in _METHODS},
    "teacher": Target(_stage("cudfkd", "teacher"), "teacher"),
    "compare": Target(_script("compare", "--methods=dafl,dfq", "--seeds=0"), "*/seed_*"),
    "sweep": Target(_script("sweep", "--set", "curriculum.lambda_0=2,3"), "cells/*"),
}


class Campaign:
    """Counts what is tried and what fails."""

    def __init__(self, config: str, folder: Path, seed: int):
        self._config, self._folder, self._draw = config, folder, random.Random(seed)
        self.failures: list[str] = []
        self._seconds: dict[str, float] = {}

    def undisturbed(self, name: str) -> None:
        """The run that others are compared with, and how long it takes."""
        start = time.monotonic()
        process = self._start(name, self._reference(name))
        self._check(name, process.wait(_DEADLINE_S) == 0, f"undisturbed, it ends with status {process.returncode}")
        self._seconds[name] = time.monotonic() - start

    def kills(self, name: str, count: int) -> None:
        """Kills a target so many times and compares each run that comes to its end."""
        attempt, hits, finished = 0, dict.fromkeys(_MOMENTS, 0), 0
        for kill in range(count):
            folder = self._folder / name / f"killed_{attempt}"
            moment = _MOMENTS[kill % len(_MOMENTS)]
            if self._kill(name, folder, moment):
                hits[moment] += 1
            else:  # it came to its end first
                finished += 1
                self._compare(name, folder)
                attempt += 1
        folder = self._folder / name / f"killed_{attempt}"
        if folder.exists():
            process = self._start(name, folder)
            self._check(name, process.wait(_DEADLINE_S) == 0, f"{folder} ends with status {process.returncode}")
            self._compare(name, folder)
        text = ", ".join(f"{number} {moment}" for moment, number in hits.items())
        print(f"{name:10} {sum(hits.values())} kills ({text}), {attempt + 1} runs compared", flush=True)

    def signals(self, count: int) -> None:
        """SIGTERM, SIGINT and two SIGINT in turns, while steps are taken."""
        folder = self._folder / "signals" / "run"
        for index in range(count):
            numbers = ((signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT))[index % 3]
            process = self._start("cudfkd", folder, stdout=subprocess.PIPE)
            if not self._wait_for(process, lambda: self._is_training(folder)):
                shutil.rmtree(folder)  # it was at its end: another one
                continue
            time.sleep(self._draw.uniform(0, 2))
            start = time.monotonic()
            for number in numbers:
                process.send_signal(number)
                time.sleep(0.1)
            status, seconds = process.wait(_DEADLINE_S), time.monotonic() - start
            names = " and ".join(number.name for number in numbers)
            expected = {128 + numbers[0], 0}  # 0: it was at its end
            self._check("signals", status in expected, f"{names}: status {status}")
            self._check("signals", seconds < 10, f"{names}: gone after {seconds:.1f} s")
            print(f"{names:20} status {status} after {seconds:.1f} s", flush=True)
            if status == 0:
                shutil.rmtree(folder)
        if folder.exists():
            self._check("signals", self._start("cudfkd", folder).wait(_DEADLINE_S) == 0, f"{folder} does not end")
            self._compare("cudfkd", folder)

    def _kill(self, name: str, folder: Path, moment: str) -> bool:
        """Starts a target and kills it; False where it came to its end first."""
        process = self._start(name, folder)
        if moment == "any":
            seen = self._wait_for(process, lambda: False, self._draw.uniform(0, self._seconds[name]))
        else:
            seen = self._wait_for(
                process, lambda: _is_saving(folder) if moment == "saving" else _is_ending(folder)
            )
        if not seen and process.poll() is not None:
            self._check(name, process.returncode == 0, f"{folder} ends with status {process.returncode}")
            return False
        time.sleep(self._draw.uniform(0, 0.3 if moment == "saving" else 1.5 if moment == "ending" else 0))
        if process.poll() is not None:
            self._check(name, process.returncode == 0, f"{folder} ends with status {process.returncode}")
            return False
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True

    def _start(self, name: str, folder: Path, **options: Any) -> subprocess.Popen[bytes]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = TARGETS[name].command(self._config, folder)
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        with folder.with_name(folder.name + ".log").open("ab") as log:
            return subprocess.Popen(
                command, env=environment, start_new_session=True, **{"stdout": log, "stderr": log, **options}
            )

    def _wait_for(
        self, process: subprocess.Popen[bytes], event: Callable[[], bool], seconds: float = _DEADLINE_S
    ) -> bool:
        """Whether the event, or with none the moment, came before the process ended."""
        end = time.monotonic() + seconds
        while process.poll() is None:
            if event() or time.monotonic() >= end:
                return True
            time.sleep(0.002)
        return False

    def _is_training(self, folder: Path) -> bool:
        return (folder / "metrics.jsonl").exists()

    def _reference(self, name: str) -> Path:
        return self._folder / name / "undisturbed"

    def _compare(self, name: str, folder: Path) -> None:
        pattern = TARGETS[name].runs
        expected, found = (
            {str(run.relative_to(place)): outcome(run) for run in place.glob(pattern) if run.is_dir()}
            if pattern != "."
            else {".": outcome(place)}
            for place in (self._reference(name), folder)
        )
        self._check(name, bool(expected), "nothing to compare")
        for run, values in expected.items():
            for part, value in values.items():
                same = found.get(run, {}).get(part) == value
                self._check(name, same, f"{folder}/{run}: {part} differs from {self._reference(name)}")

    def _check(self, name: str, holds: bool, text: str) -> None:
        if not holds:
            self.failures.append(f"{name}: {text}")
            print(self.failures[-1], file=sys.stderr, flush=True)


def outcome(run: Path) -> dict[str, Any]:
    """What a run came to: bytes of its networks, its records and summary without times."""
    found: dict[str, Any] = {
        str(path.relative_to(run)): path.read_bytes()
        for folder in ("student", "student_best", "net", "teacher/net")
        for path in sorted((run / folder).glob("*"))
    }
    for name in ("metrics.jsonl", "summary.json"):
        path = run / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text.splitlines() if name == "metrics.jsonl" else [text] if text else []
        found[name] = [{k: v for k, v in json.loads(line).items() if k not in _TIMES} for line in lines] or None
    return found


def _is_saving(folder: Path) -> bool:
    """Whether a checkpoint is there that has no manifest yet."""
    places = [path for path in folder.glob("**/checkpoints/*") if path.name[:9].isdigit() and path.is_dir()]
    return any(not path.with_name(path.name[:9] + ".sha256.json").exists() for path in places)


def _is_ending(folder: Path) -> bool:
    """Whether the last summary is written and the command goes on."""
    return (folder / "summary.json").exists() or bool(list(folder.glob("*/*/summary.json")))


def main(arguments: Sequence[str]) -> int:
    """Runs the campaign and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signals", type=int, default=6)
    parser.add_argument("--targets", default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default=str(_ROOT / "tests/tiny.py"))
    parser.add_argument("--workdir", required=True)
    options = parser.parse_args(arguments)
    names = list(TARGETS) if options.targets == "all" else options.targets.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"unknown target {unknown[0]!r}; valid: all, {', '.join(TARGETS)}")
    folder = Path(options.workdir).expanduser()
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"--workdir={folder} is not empty; name a new one")
    campaign = Campaign(options.config, folder, options.seed)
    for index, name in enumerate(names):
        campaign.undisturbed(name)
        campaign.kills(name, options.kills // len(names) + (index < options.kills % len(names)))
    if options.signals:
        if "cudfkd" not in names:
            campaign.undisturbed("cudfkd")
        campaign.signals(options.signals)
    print(f"{len(campaign.failures)} failures")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
