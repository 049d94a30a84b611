"""The targets of the kills, and their results."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

_SCRIPTS = Path(__file__).resolve().parents[1]
_TIMES = {"seconds", "evaluation_seconds", "images_per_s", "wall_s", "peak_memory_mib"}
_NETWORKS = ("student", "student_best", "net", "teacher/net")


class Target(NamedTuple):
    """A command to kill.

    Attributes:
        command: its arguments, except the configuration and the workdir.
        method: suffix of the configuration that names the method; may be empty.
        runs: pattern of the run folders in the workdir; "": the workdir itself.
    """

    command: tuple[str, ...]
    method: str = ""
    runs: str = ""


def _stage(method: str, stage: str, runs: str = "") -> Target:
    run = ("-m", "cudfkd_jax.main", f"--stage={stage}", "--config.checkpoint.every_seconds=0.5")
    return Target(run, f":method={method}", runs)


def _script(name: str, runs: str, *options: str) -> Target:
    return Target((str(_SCRIPTS / f"{name}.py"), *options), runs=runs)


TARGETS = {
    **{method: _stage(method, "all") for method in ("cudfkd", "cmi", "pre_dfkd")},
    "teacher": _stage("cudfkd", "teacher", runs="teacher"),
    "compare": _script("compare", "*/seed_*", "--methods=dafl,dfq", "--seeds=0"),
    "sweep": _script("sweep", "cells/*", "--set", "curriculum.lambda_0=2,3"),
}


class Run:
    """A target in a separate folder, which can be started repeatedly."""

    def __init__(self, target: Target, config: str, folder: Path):
        self.target, self.folder = target, folder
        self._command = [
            *(sys.executable, *target.command),
            *(f"--config={config}{target.method}", f"--workdir={folder}"),
        ]

    def start(self, *, cold: bool = False) -> subprocess.Popen[bytes]:
        """Starts or resumes the target; `cold` disables the compilation cache."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        environment = {"JAX_COMPILATION_CACHE_DIR": str(self.folder.parent / "xla")} | os.environ
        environment |= {"JAX_PLATFORMS": "cpu"} | ({"JAX_ENABLE_COMPILATION_CACHE": "0"} if cold else {})
        with self.folder.with_name(self.folder.name + ".log").open("ab") as log:
            return subprocess.Popen(
                self._command, env=environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
            )

    def is_saving(self) -> bool:
        """Returns whether a checkpoint exists without its manifest."""
        written = [path for path in self.folder.glob("**/checkpoints/*") if path.name[:9].isdigit()]
        return any(not path.with_name(f"{path.name[:9]}.sha256.json").exists() for path in written)

    def is_ending(self) -> bool:
        """Returns whether any run has a summary."""
        return any((run / "summary.json").exists() for run in self.runs())

    def has_epochs(self, count: int) -> bool:
        """Returns whether at least `count` epochs are recorded."""
        return self.epochs() >= count

    def epochs(self) -> int:
        """Returns the number of recorded epochs."""
        return sum(len(_read(run / "metrics.jsonl").splitlines()) for run in self.runs())

    def runs(self) -> list[Path]:
        """Returns the folders of the runs."""
        return sorted(self.folder.glob(self.target.runs)) if self.target.runs else [self.folder]

    def outcome(self) -> dict[str, Any]:
        """Returns the networks' bytes, records and summaries without times, and whether a report exists."""
        found: dict[str, Any] = {}
        for run in self.runs():
            name = run.relative_to(self.folder)
            files = [path for network in _NETWORKS for path in sorted((run / network).glob("*.*"))]
            found |= {f"{path.relative_to(self.folder)}": path.read_bytes() for path in files}
            found[f"{name}/metrics.jsonl"] = [
                _without_times(line) for line in _read(run / "metrics.jsonl").splitlines()
            ]
            found[f"{name}/summary.json"] = _without_times(_read(run / "summary.json") or "{}")
            found[f"{name}/report.html"] = (run / "report.html").exists()
        return found


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _without_times(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key not in _TIMES}
