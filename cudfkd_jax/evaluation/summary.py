"""The results of a finished stage, as `summary.json` and as a table."""

import platform
import resource
import statistics
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from cudfkd_jax.evaluation.headline import headline
from cudfkd_jax.evaluation.metrics import stability
from cudfkd_jax.models import count_parameters
from cudfkd_jax.runtime.devices import Devices
from cudfkd_jax.storage import records
from cudfkd_jax.storage.files import read_object
from cudfkd_jax.storage.records import Record
from cudfkd_jax.storage.weights import Trained
from cudfkd_jax.training.progress import duration

SUMMARY = "summary.json"
DAMAGED = "; remove it, and the same command writes it again"  # after "… is damaged"
_PACKAGES = ("cudfkd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_NO_STABILITY = {"mean": None, "variance": None}
BEST = "student_best"  # in a summary and a workdir
SYNTHETIC = "_synthetic"  # suffix of metrics measured on synthetic images
TEST_METRICS = ("acc1", "acc5", "agree1", "loyalty", "loyalty_released")
_WIDTH = 80  # of tables, in characters
_SYNTHETIC_NOTE = "agreement on held-out synthetic images, not on real ones; no accuracy is known"
_AGAINST_TEACHER = tuple(name + SYNTHETIC for name in TEST_METRICS[2:])


class RunDescription(NamedTuple):
    """What the summary of a run repeats.

    `stability_from` is an epoch, counted from 1; `classes` are the class names in label order, empty if unknown.
    """

    dataset: str
    seed: int
    compute_dtype: str
    method: str
    stability_from: int
    classes: tuple[str, ...] = ()


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads the summary of a finished stage from its folder.

    Raises:
        UserError: the file is missing or damaged.
    """
    return read_object(folder / SUMMARY, DAMAGED)


def distill_summary(
    *,
    run: RunDescription,
    history: list[Record],
    teacher: dict[str, Any],
    student: dict[str, Any],
    devices: Devices,
) -> dict[str, Any]:
    """Returns the summary of a data-free run.

    Args:
        run: its settings.
        history: one record per epoch.
        teacher: its architecture, parameters and, with test images, acc1 and so on.
        student: its architecture and parameters.
        devices: the run's devices.

    Returns:
        JSON-ready; accuracies in percent. `agree1`, `loyalty` and so on are the last student's. Each `*_best` is a
        separate maximum over the epochs, chosen on the test images, as in the paper's tables. `student_best` is
        the one student with the best `acc1`, as saved. Without test images, metrics are measured on synthetic
        images and end in `_synthetic`.
    """
    last = history[-1]
    from_epoch = run.stability_from
    later = [record["acc1"] for record in history if "acc1" in record and record["epoch"] >= from_epoch]
    student_summary = dict(student)
    for name in (*TEST_METRICS, *_AGAINST_TEACHER):
        if best := records.best(history, name):
            student_summary |= {f"{name}_best": best.value, f"{name}_best_epoch": best.epoch}
        if name in last:
            student_summary["acc1_last" if name == "acc1" else name] = last[name]
    return {
        "method": run.method,
        **common_summary(run, history, devices),
        "teacher": teacher,
        "student": student_summary,
        **_best_student(history),
        "stability": {**(stability(later)._asdict() if later else _NO_STABILITY), "from_epoch": from_epoch},
    }


def _best_student(history: list[Record]) -> dict[str, Any]:
    """Returns the entry of the student that `student_best/` holds; nothing without test images."""
    best = records.best(history, "acc1")
    if best is None:
        return {}
    record = history[best.epoch - 1]
    return {BEST: {"epoch": best.epoch, **{name: record[name] for name in TEST_METRICS if name in record}}}


def common_summary(run: RunDescription, history: list[Record], devices: Devices) -> dict[str, Any]:
    """Returns the entries common to the summaries of all stages."""
    return {
        "dataset": run.dataset,
        "classes": list(run.classes),
        "seed": run.seed,
        "compute_dtype": run.compute_dtype,
        "epochs": len(history),
        "wall_s": sum(record["seconds"] + record["evaluation_seconds"] for record in history),
        # The median, as the first epoch includes compilation.
        "images_per_s": statistics.median(record["images_per_s"] for record in history),
        "peak_memory_mib": peak_memory(devices),
        "devices": {"kind": devices.devices[0].device_kind, "count": len(devices.devices)},
        "versions": {
            "python": platform.python_version(),
            **{package: package_version(package) for package in _PACKAGES},
        },
    }


def peak_memory(devices: Devices) -> dict[str, float | None]:
    """Returns the peak memory, in MiB, of this process and of its first device, if the device reports it."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, else in KiB
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    device = (devices.local[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"host": host / 2**20, "device": device / 2**20 if device else None}


def package_version(package: str) -> str:
    """Returns the version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a checkout used without installation
        return "not installed"


def describe(summary: dict[str, Any]) -> str:
    """Formats a summary as the text shown at the end of a stage, at most 80 columns wide."""
    pace = f"{duration(summary['wall_s'])}, {summary['images_per_s']:,.0f} images/s"
    if "network" in summary:
        return f"{table({summary['stage']: summary['network']})}\n{pace}"
    student, teacher = summary["student"], summary["teacher"]
    if "acc1_last" not in student:
        networks = {"teacher": teacher, "student": student}
        notes = [pace, _SYNTHETIC_NOTE]
    else:
        best = _best_of(summary)
        networks = {
            "teacher": teacher,
            "student": student | {"acc1": student["acc1_last"]},
            BEST: {name: student[name] for name in ("arch", "parameters")} | best,
        }
        notes = [best_note(best["epoch"]), _describe_stability(**summary["stability"]), pace]
    return "\n".join((*_headline(summary), table(networks), *notes))


def _headline(summary: dict[str, Any]) -> list[str]:
    """Returns a line that compares the student with the teacher, and an empty one."""
    student = summary["student"]
    last = {"acc1": student["acc1_last"]} if "acc1_last" in student else {}
    said = [text for text, _ in headline(summary["teacher"], student | last)]
    return [", ".join(said[:2]), ""] if said else []


def _best_of(summary: dict[str, Any]) -> dict[str, Any]:
    """Returns the epoch and the metrics of the student in `student_best/`.

    Summaries of earlier versions have only the maxima of each metric: those reached in the same epoch are its own.
    """
    if BEST in summary:
        return dict(summary[BEST])
    student, epoch = summary["student"], summary["student"]["acc1_best_epoch"]
    same = [name for name in TEST_METRICS if student.get(f"{name}_best_epoch") == epoch]
    return {"epoch": epoch, **{name: student[f"{name}_best"] for name in same}}


def best_note(epoch: int) -> str:
    """Describes the best student of a table; the other one is the last."""
    return f"{BEST}: after epoch {epoch}, the best acc@1 on the test images"


def _describe_stability(mean: float | None, variance: float | None, from_epoch: int) -> str:
    if mean is None:
        return f"acc@1 from epoch {from_epoch} on: the run has no such epoch"
    return f"acc@1 from epoch {from_epoch} on: mean {mean:.2f}, variance {variance:.3g}"


def evaluation_table(nets: dict[str, Trained], measured: dict[str, dict[str, float]]) -> str:
    """Formats test metrics by network as a table."""
    return table(
        {
            name: {"arch": net.net.arch, "parameters": count_parameters(net.variables["params"])} | measured[name]
            for name, net in nets.items()
        }
    )


COLUMNS = {  # name in a summary: heading, digits
    "acc1": ("acc@1 %", 2),
    "acc5": ("acc@5 %", 2),
    "agree1": ("agree@1 %", 2),
    "loyalty": ("loyalty", 4),
    "loyalty_released": ("loyalty (released)", 4),
    "agree1_synthetic": ("synthetic agree@1 %", 2),
    "loyalty_synthetic": ("synthetic loyalty", 4),
}


def table(networks: dict[str, dict[str, Any]]) -> str:
    """Formats one column per network, at most 80 columns of text, and one row per known metric.

    Args:
        networks: by name, `arch`, `parameters` and metrics as in a summary.
    """
    named = [name for name in COLUMNS if any(name in network for network in networks.values())]
    first = ["", "network", "parameters", *(COLUMNS[name][0] for name in named)]
    room = (_WIDTH - max(map(len, first))) // len(networks) - 2
    columns = [first]
    for label, network in networks.items():
        values = [f"{network[name]:.{COLUMNS[name][1]}f}" if name in network else "" for name in named]
        columns.append([label, _shortened(network["arch"], room), f"{network['parameters']:,}", *values])
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return "\n".join(
        "  ".join((name.ljust(widths[0]), *map(str.rjust, cells, widths[1:]))).rstrip() for name, *cells in rows
    )


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[1 - width :]}"
