"""Step 1: checks that the device's results match the CPU's and are reproducible."""

import concurrent.futures
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from gpu import checks
from gpu.session import Session, StepFailedError

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_REFERENCE = "reference.npz"


def reference(carried: Path) -> Path:
    """Returns the path of the CPU's losses and gradients."""
    return carried / _REFERENCE


def reference_program(path: Path) -> tuple[str, ...]:
    """Returns the Python arguments that compute the reference and write it to `path`."""
    return "-m", "gpu.checks", checks.REFERENCE, f"--out={path}"


def run(session: Session) -> dict[str, Any]:
    """Runs all checks in parallel, each in a separate process."""
    path = reference(session.carried)
    if not path.exists():
        path = session.scratch / _REFERENCE
        if not path.exists():
            session.call("reference", *reference_program(path), JAX_PLATFORMS="cpu")
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(max(os.cpu_count() or 1, 2)) as pool:
        # Two runs with separate compilation caches, so that only the flag can make them equal.
        twins = [pool.submit(_digits, session, name) for name in ("bits_0", "bits_1")]
        waiting = {name: pool.submit(_check, session, name, path) for name in checks.CHECKS}
        found = {name: result.result() for name, result in waiting.items()}
        found["same bits twice"] = _same_bits(*(twin.result() for twin in twins))
    return {"checks": found, "seconds": time.monotonic() - begin, "ok": all(f["ok"] for f in found.values())}


def show(result: dict[str, Any]) -> str:
    """Formats the results as a table."""
    lines = []
    for name, found in result["checks"].items():
        numbers = [f"{key} {found[key]:.1e}" for key in ("loss", "gradient", "difference") if key in found]
        where = [found[key] for key in ("worst_gradient", "error") if key in found and not found["ok"]]
        if found.get("cancelling"):
            most = max(found["cancelling"].values())
            where.append(f"{len(found['cancelling'])} of {found['gradients']} cancel, to {most:.0e}")
        same = [f"same bits: {'yes' if found['same_bits'] else 'no'}"] if "same_bits" in found else []
        lines.append(f"  {'ok' if found['ok'] else 'NOT':4}{name:16} {'  '.join([*numbers, *same, *where])}")
    return "\n".join([*lines, f"  {result['seconds']:.0f} s"])


def _check(session: Session, name: str, path: Path) -> dict[str, Any]:
    out = session.scratch / f"check_{name}.json"
    try:
        session.call(f"check_{name}", "-m", "gpu.checks", name, f"--reference={path}", f"--out={out}")
    except StepFailedError as error:
        return {"ok": False, "error": str(error)}
    return dict(json.loads(out.read_text()))


def _digits(session: Session, name: str) -> bytes | StepFailedError:
    """Returns the student's bytes from a new short run, or the error."""
    folder = session.scratch / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        session.call(
            name,
            *("-m", "cudfkd_jax.main", "--config=configs/digits.py:teacher=wrn10_1,student=wrn10_1,runlocal"),
            *("--config.teacher.epochs=2", "--config.distill.epochs=2", "--config.log.report=false"),
            f"--workdir={folder}",
            XLA_FLAGS=_DETERMINISTIC if session.platform == "gpu" else "",
            JAX_COMPILATION_CACHE_DIR=str(session.scratch / f"xla_{name}"),
        )
    except StepFailedError as error:
        return error
    return (folder / "student/weights.msgpack").read_bytes()


def _same_bits(*students: bytes | StepFailedError) -> dict[str, Any]:
    for student in students:
        if isinstance(student, StepFailedError):
            return {"ok": False, "error": str(student)}
    return {"ok": students[0] == students[1], "same_bits": students[0] == students[1]}
