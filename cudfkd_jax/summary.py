"""What a finished stage came to, as `summary.json` and as a table."""

import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from ml_collections import ConfigDict

from cudfkd_jax import records
from cudfkd_jax.metrics import stability
from cudfkd_jax.models import count_parameters
from cudfkd_jax.parallel import Devices
from cudfkd_jax.progress import duration
from cudfkd_jax.records import Record
from cudfkd_jax.weights import Trained

SUMMARY = "summary.json"
_PACKAGES = ("cudfkd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_NO_STABILITY = {"mean": None, "variance": None}
TEST_METRICS = ("acc1", "acc5", "agree1", "loyalty", "loyalty_released")


def distill_summary(
    *,
    config: ConfigDict,
    history: list[Record],
    teacher: Trained,
    teacher_metrics: dict[str, float],
    student: Any,
    devices: Devices,
) -> dict[str, Any]:
    """The summary of a data-free run.

    Args:
        history: a record an epoch.
        teacher_metrics: the teacher's acc1 and so on, on the test images.
        student: the student's parameters, to be counted.

    Returns:
        JSON-ready; accuracies in percent. `agree1`, `loyalty` and so on are the last student's; each `*_best`
        is the best over the epochs by itself, chosen on the test images, as the paper's tables do.
    """
    last = history[-1]
    from_epoch = config.evaluation.stability_from
    later = [record["acc1"] for record in history if "acc1" in record and record["epoch"] >= from_epoch]
    student_summary: dict[str, Any] = {
        "arch": config.student.arch,
        "parameters": count_parameters(student),
    }
    for name in TEST_METRICS:
        if best := records.best(history, name):
            student_summary |= {f"{name}_best": best.value, f"{name}_best_epoch": best.epoch}
    student_summary["acc1_last"] = last["acc1"]
    student_summary |= {name: last[name] for name in TEST_METRICS[1:] if name in last}
    return {
        "method": config.method,
        **common_summary(config, history, devices),
        "teacher": {
            "arch": teacher.net.arch,
            "parameters": count_parameters(teacher.variables["params"]),
            **teacher_metrics,
        },
        "student": student_summary,
        "stability": {**(stability(later)._asdict() if later else _NO_STABILITY), "from_epoch": from_epoch},
    }


def common_summary(config: ConfigDict, history: list[Record], devices: Devices) -> dict[str, Any]:
    """What the summaries of all stages have."""
    return {
        "dataset": config.data.name,
        "seed": config.seed,
        "epochs": len(history),
        "wall_s": sum(record["seconds"] + record["evaluation_seconds"] for record in history),
        # The median epoch: the first one compiles.
        "images_per_s": statistics.median(record["images_per_s"] for record in history),
        "devices": {"kind": devices.devices[0].device_kind, "count": len(devices.devices)},
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a checkout that is used without being installed
        return "not installed"


def describe(summary: dict[str, Any]) -> str:
    """A summary as the lines that a user reads at the end of a stage."""
    pace = f"{duration(summary['wall_s'])}, {summary['images_per_s']:,.0f} images/s"
    if "network" in summary:
        network = summary["network"]
        rows = [_HEADER, _row(summary["stage"], network, network)]
        return f"{_aligned(rows)}\n{pace}"
    teacher, student = summary["teacher"], summary["student"]
    last = {**student, "acc1": student["acc1_last"]}
    best = {name: student[f"{name}_best"] for name in TEST_METRICS if f"{name}_best" in student}
    rows = [
        _HEADER,
        _row("teacher", teacher, teacher),
        _row("student, last", student, last),
        _row("student, best", student, best),
    ]
    return (
        f"{_aligned(rows)}\n"
        f"{_describe_stability(**summary['stability'])}\n"
        f"{pace}; each best value is chosen by itself on the test images"
    )


def _describe_stability(mean: float | None, variance: float | None, from_epoch: int) -> str:
    if mean is None:
        return f"acc@1 from epoch {from_epoch} on: the run has no such epoch"
    return f"acc@1 from epoch {from_epoch} on: mean {mean:.2f}, variance {variance:.3g}"


def evaluation_table(nets: dict[str, Trained], measured: dict[str, dict[str, float]]) -> str:
    """Test metrics by network as lines of text."""
    rows: list[tuple[str, ...]] = [_HEADER]
    for name, trained in nets.items():
        parameters = count_parameters(trained.variables["params"])
        rows.append(_row(name, {"arch": trained.net.arch, "parameters": parameters}, measured[name]))
    return _aligned(rows)


_HEADER = ("", "", "acc@1 %", "acc@5 %", "agree@1 %", "loyalty", "loyalty (released)", "parameters")


def _row(name: str, network: dict[str, Any], metrics: dict[str, float]) -> tuple[str, ...]:
    cells = [f"{metrics[key]:.{digits}f}" if key in metrics else "" for key, digits in _DIGITS.items()]
    return (name, network["arch"], *cells, f"{network['parameters']:,}")


_DIGITS = dict(zip(TEST_METRICS, (2, 2, 2, 4, 4), strict=True))


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
