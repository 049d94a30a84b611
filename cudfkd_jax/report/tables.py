"""The tables of a report as rows of text (results, facts, settings), and the configuration that reruns a run."""

import json
from collections.abc import Sequence
from typing import Any

from cudfkd_jax.evaluation.summary import BEST, COLUMNS
from cudfkd_jax.report.read import Run, is_finite, is_number, printable
from cudfkd_jax.runtime.imports import is_import_path
from cudfkd_jax.storage import records

Row = tuple[str, ...]
_NETWORK = {**COLUMNS, "loyalty_released_synthetic": ("synthetic loyalty (released)", 4)}


def number(value: Any, digits: int) -> str:
    """Formats a number to `digits` decimal places; non-finite values and non-numbers are labelled."""
    if value is None:
        return ""
    return f"{value:,.{digits}f}" if is_finite(value) else "not finite" if is_number(value) else "?"


def results(runs: Sequence[Run]) -> list[Row]:
    """Returns a heading and one row per network: teachers, last students, the students in `student_best/`."""
    several = len(runs) > 1
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        start = f"{run.name}: " if several else ""
        finite = [{k: v for k, v in r.items() if is_finite(v)} for r in run.records]
        last: dict[str, Any] = next((r for r in reversed(run.records) if any(key in r for key in _NETWORK)), {})
        student = _object(run.summary, "student")
        arch = {"arch": run.config.get("student.module") or run.config.get("student.arch", "")}
        rows[f"{start}teacher"] = {"arch": run.config.get("teacher.module") or run.config.get("teacher.arch", "")}
        rows[f"{start}teacher"] |= run.teacher
        epoch = f", epoch {last['epoch']}" if last else ""
        rows[f"{start}student{epoch}"] = arch | {"parameters": student.get("parameters")} | last
        if best := records.best(finite, "acc1"):
            kept = next(r for r in finite if r["epoch"] == best.epoch)
            rows[f"{start}{BEST}, epoch {best.epoch}"] = arch | {"parameters": student.get("parameters")} | kept
    keys = [key for key in _NETWORK if any(key in row for row in rows.values())]
    return [
        ("", "network", *(_NETWORK[key][0] for key in keys), "parameters"),
        *(
            (label, str(row["arch"]), *(number(row.get(key), _NETWORK[key][1]) for key in keys),
             number(row.get("parameters"), 0))
            for label, row in rows.items()
        ),
    ]  # fmt: skip


def facts(run: Run) -> list[Row]:
    """Returns further facts about a run as pairs of name and value."""
    summary, config = run.summary, run.config
    stability, devices, versions = (_object(summary, name) for name in ("stability", "devices", "versions"))
    seconds = [r.get(key) for r in run.records for key in ("seconds", "evaluation_seconds")]
    wall = sum(s for s in seconds if is_finite(s))
    student_steps = run.records[-1].get("step") if run.records else 0
    named: list[Row] = [
        ("method", str(config.get("method", "?"))),
        ("data", f"{config['data.name']}, to measure only" if config.get("data.name") else "none"),
        *_classes(summary.get("classes")),
        ("seed", str(config.get("seed", "?"))),
        (
            "epochs",
            f"{len(run.records)} of {config.get('distill.epochs', '?')}, {number(student_steps, 0)} student steps",
        ),
        ("time", f"{wall / 60:.1f} min"),
    ]
    if is_finite(summary.get("images_per_s")):
        named.append(("speed", f"{summary['images_per_s']:,.0f} images/s"))
    if is_finite(stability.get("mean")):
        start = f"acc@1 from epoch {stability.get('from_epoch')} on"
        text = f"mean {stability['mean']:.2f} %, variance {number(stability.get('variance'), 3)} %²"
        named.append((start, text))
    if devices:
        named.append(("devices", f"{devices.get('count')} × {devices.get('kind')}"))
    if versions:
        named.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return named


def settings(run: Run) -> list[Row]:
    """Returns all settings with their values."""
    return [(key, json.dumps(value, ensure_ascii=False)) for key, value in sorted(run.config.items())]


def configuration_file(run: Run) -> str:
    """Returns a configuration file for `--config` that sets all settings of the run, whose length is settled."""
    held = run.config | ({"distill.budget": ""} if "distill.budget" in run.config else {})
    lines = [
        f"    {key!r}: {tuple(value) if isinstance(value, list) else value!r},\n"
        for key, value in sorted(held.items())
    ]
    return (
        '"""Every setting of a run."""\n\n'
        "from cudfkd_jax import defaults\n\n"
        f"SETTINGS = {{\n{''.join(lines)}}}\n\n\n"
        "def get_config():\n"
        f"    config = defaults.{_base(held)}\n"
        "    config.update_from_flattened_dict(SETTINGS)\n"
        "    return config\n"
    )


def _base(held: dict[str, Any]) -> str:
    """Returns a call that gives a configuration with all sections, that of a method of the user's own included."""
    if is_import_path(method := held.get("method", "")):
        teacher, student = held["teacher.arch"], held["student.arch"]
        return f"with_arguments({teacher!r}, {student!r}, {{'method': {method!r}}})"
    return "get_config()"


def _classes(names: Any) -> list[Row]:
    if not isinstance(names, list) or not names:  # an earlier run, or data without names
        return []
    if names == [str(label) for label in range(len(names))]:
        return []
    return [("classes", printable(", ".join(f"{label} {name}" for label, name in enumerate(names))))]


def _object(summary: dict[str, Any], name: str) -> dict[str, Any]:
    value = summary.get(name)
    return value if isinstance(value, dict) else {}
