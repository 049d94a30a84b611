"""Real runs on CIFAR-10, with schedules fitted to the remaining time."""

import json
import shutil
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu import speed
from gpu.session import MOST_BYTES, Child, Session, StepFailedError
from gpu.sizes import Pair

_REPORT_S = 20.0  # at the end of a run: the report, and writing and packing files
_MOST_S = 600.0  # per method
_REHEARSED = "epoch 2/"
_CHEAPEST_FIRST = (
    "zskt",
    "dfad",
    "dafl",
    "dfq",
    "cudfkd",
    "adadfkd",
    "mb_dfkd",
    "pre_dfkd",
    "fastdfkd",
    "cmi",
    "adi",
)


def run(session: Session, name: str, pair: Pair, measured: dict[str, Any] | None) -> dict[str, Any]:
    """Trains a teacher, or uses the carried one, and distils for the remaining time.

    Args:
        session: the current session.
        name: the name of the step.
        pair: the networks and their settings.
        measured: the pair's speed if known; the run is then rehearsed while the teacher trains.
    """
    begin = time.monotonic()
    epoch_s = _epoch_s(pair, measured)
    teacher, planned_s, rehearsal = _carried_teacher(session, name), 0.0, None
    if teacher is None:
        if epoch_s is not None:
            planned_s = session.left - pair.teacher_s - _REPORT_S
            rehearsal = _rehearse(session, name, pair, planned_s, epoch_s)
        teacher = _train(session, name, pair, rehearsal)
    trained_s = time.monotonic() - begin
    # The rehearsed length if it fits, because a run of another length compiles other programs.
    seconds = session.left - _REPORT_S
    seconds = planned_s if 0 < planned_s <= seconds else seconds
    workdir = session.scratch / name
    child = session.start(f"{name}_distill", *_distill(session, pair, teacher, workdir, seconds, epoch_s))
    return _finish(session, name, child, workdir) | {"until_teacher_s": trained_s}


def methods(session: Session, pair: Pair, names: Sequence[str] = _CHEAPEST_FIRST) -> dict[str, Any]:
    """Distils with each method, cheapest first, for an equal share of the remaining time, ten minutes at most.

    Raises:
        StepFailedError: there is no teacher, or too little time.
    """
    trained = session.scratch / "flagship_teacher"
    teacher = _carried_teacher(session, "flagship") or (trained if (trained / "teacher/net").is_dir() else None)
    if teacher is None:
        raise StepFailedError("no teacher: the flagship step has not trained one, and --carried contains none")
    found: dict[str, Any] = {}
    for i, name in enumerate(names):
        step = f"methods/{name}"
        if session.result(step) is None:
            seconds = min(session.left / (len(names) - i), _MOST_S)
            if seconds < (1 if session.smoke else 60):
                raise StepFailedError(f"{seconds:.0f} s per method is too little; left: {', '.join(names[i:])}")
            workdir = session.scratch / f"methods_{name}"
            child = session.start(
                f"methods_{name}",
                *_distill(session, pair.of_method(name), teacher, workdir, seconds - _REPORT_S / 2, None),
            )
            session.keep(step, _finish(session, step.replace("/", "_"), child, workdir))
        found[name] = session.result(step)
        session.say(_row(name, found[name]))
    return {"ok": True, "methods": found}


def show(result: dict[str, Any]) -> str:
    """Formats the accuracy by minute and the final results."""
    lines = [f"  {'minute':>7}{'step':>9}{'acc@1 %':>9}{'agree@1 %':>11}"]
    shown = -1.0
    for row in result["by_time"]:
        if row["minute"] - shown >= 0.5 or row is result["by_time"][-1]:
            shown = row["minute"]
            lines.append(f"  {row['minute']:7.1f}{row['step']:9,}{row['acc1']:9.2f}{row['agree1']:11.2f}")
    if summary := result.get("summary"):
        teacher, student = summary["teacher"], summary["student"]
        lines.append(
            f"  teacher {teacher['arch']} {teacher['acc1']:.2f} %, student {student['arch']} "
            f"{student['acc1_last']:.2f} % (best {student['acc1_best']:.2f} %), "
            f"{summary['images_per_s']:,.0f} images/s"
        )
    return "\n".join(lines)


def show_methods(result: dict[str, Any]) -> str:
    """Formats one line per method."""
    return "\n".join(_row(name, found) for name, found in result["methods"].items())


def _row(name: str, found: dict[str, Any] | None) -> str:
    last = found["by_time"][-1] if found and found["by_time"] else None
    if not found or not last:
        return f"  {name:10} {(found or {}).get('error', 'nothing')}"
    return (
        f"  {name:10}{last['acc1']:7.2f} %  agree {last['agree1']:6.2f} %  {last['step']:8,} steps  "
        f"{last['minute']:5.1f} min{'' if found['ok'] else '  stopped: ' + found.get('error', '')}"
    )


def _epoch_s(pair: Pair, measured: dict[str, Any] | None) -> float | None:
    if measured is None or "timings" not in measured:
        return None
    rounds = next((c for c in pair.changes if "rounds_per_epoch" in c), "=40").partition("=")[2]
    return speed.round_s(measured) * int(rounds)


def _carried_teacher(session: Session, name: str) -> Path | None:
    """Returns the file or folder of a carried teacher, for `teacher.checkpoint`."""
    weights = session.carried / f"{name}_teacher.safetensors"
    if weights.exists():
        return weights
    folder = session.scratch / f"{name}_carried"
    path = session.carried / f"{name}_teacher.tar.gz"
    if not folder.exists() and path.exists():
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    return folder if folder.exists() else None


def _train(session: Session, name: str, pair: Pair, rehearsal: Child | None) -> Path:
    workdir = session.scratch / f"{name}_teacher"
    child = session.start(
        f"{name}_teacher",
        *("-m", "cudfkd_jax.main", "--stage=teacher", f"--config={pair.config}", f"--workdir={workdir}"),
        *(*pair.changes, *pair.teacher, *session.data),
    )
    begin = time.monotonic()
    while rehearsal and child.is_running() and session.left > 0:
        time.sleep(0.5)
        if any(
            _REHEARSED in line for line in rehearsal.lines()
        ):  # its programs are compiled; it would only slow the teacher down
            rehearsal.kill()
            session.say(f"  rehearsed in {time.monotonic() - begin:.0f} s")
            rehearsal = None
    session.expect(child, "teacher", seconds=2 * pair.teacher_s)
    if rehearsal:
        rehearsal.kill()
    net = workdir / "teacher/net"
    session.say(f"  teacher trained in {time.monotonic() - begin:.0f} s: {child.said()}")
    _pack(session.out / f"{name}_teacher.tar.gz", [net / "net.json", net / "weights.msgpack"], net)
    return workdir


def _rehearse(session: Session, name: str, pair: Pair, seconds: float, epoch_s: float) -> Child:
    """Starts the same run with a teacher of random weights, which compiles its programs."""
    untrained = session.scratch / f"{name}_untrained"
    session.call(f"{name}_untrained", "-m", "gpu.untrained", f"--config={pair.config}", f"--out={untrained}")
    workdir = session.scratch / f"{name}_rehearsal"
    return session.start(f"{name}_rehearsal", *_distill(session, pair, untrained, workdir, seconds, epoch_s))


def _distill(
    session: Session, pair: Pair, teacher: Path, workdir: Path, seconds: float, epoch_s: float | None
) -> tuple[str, ...]:
    known = () if epoch_s is None else (f"--epoch_s={epoch_s}",)
    return (
        *("-m", "gpu.fitted", f"--seconds={seconds}", *known),
        *(f"--config={pair.config}", f"--workdir={workdir}", f"--config.teacher.checkpoint={teacher}"),
        *(*pair.changes, *session.data),
    )


def _finish(session: Session, name: str, child: Child, workdir: Path) -> dict[str, Any]:
    """Waits for a run and keeps its results, also if it was stopped."""
    result: dict[str, Any] = {"ok": True}
    try:
        session.expect(child, name)
    except StepFailedError as error:
        result = {"ok": False, "error": str(error)}
    result |= {"fitted": _said_about_fit(child), "by_time": _by_time(workdir / "metrics.jsonl")}
    summary = workdir / "summary.json"
    if summary.exists():
        result["summary"] = json.loads(summary.read_text())
    files = [workdir / file for file in ("config.json", "metrics.jsonl", "summary.json", "report.html")]
    files += [*workdir.glob("samples/*.png"), *workdir.glob("student/*")]
    _pack(session.out / f"{name}.tar.gz", files, workdir)
    if not result["by_time"] and "error" not in result:
        result |= {"ok": False, "error": "no epoch was finished"}
    return result


def _said_about_fit(child: Child) -> str:
    return next((line for line in child.lines() if "per epoch" in line), "")


def _by_time(path: Path) -> list[dict[str, Any]]:
    """Returns accuracy and agreement by minutes of training and evaluation."""
    rows, seconds = [], 0.0
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        seconds += record["seconds"] + record["evaluation_seconds"]
        if "acc1" in record:
            rows.append({"minute": seconds / 60} | {key: record[key] for key in ("step", "acc1", "agree1")})
    return rows


def _pack(archive: Path, files: Sequence[Path], root: Path) -> None:
    """Writes an archive within the size limit, without the largest files if necessary."""
    there = sorted((file for file in files if file.exists()), key=lambda file: file.stat().st_size)
    while there:
        new = archive.with_suffix(".new")
        with tarfile.open(new, "w:gz") as tar:
            for file in there:
                tar.add(file, file.relative_to(root))
        if new.stat().st_size <= MOST_BYTES:
            shutil.move(new, archive)
            return
        new.unlink()
        there.pop()
