"""Export of a finished run's student to the formats of other programs.

    <workdir>/export/<format>/    the student, and student.json, which describes it and its origin

The weight formats hold the bare network, which expects normalised inputs; the programs include the normalisation.
Each export is written to a temporary folder, read back, compared, measured, and then renamed into place.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cudfkd_jax.evaluation import latency
from cudfkd_jax.evaluation.summary import SUMMARY
from cudfkd_jax.models import count_parameters
from cudfkd_jax.runs.distill import STUDENT
from cudfkd_jax.runtime.devices import local_devices
from cudfkd_jax.runtime.errors import RunFailedError, UserError
from cudfkd_jax.runtime.imports import is_import_path
from cudfkd_jax.storage import checkpoint, torch_names, weights, workdir
from cudfkd_jax.storage.files import read_object, write_json
from cudfkd_jax.storage.formats import FORMATS, PYTORCH, Format
from cudfkd_jax.storage.weights import NetworkSpec, Trained

EXPORTS = "export"
DESCRIPTION = f"{STUDENT}.json"
_COST = "cost"  # what a machine measured, not part of what the export is


def export(folder: Path, format_: str, say: Callable[[str], None] = print) -> Path:
    """Writes the student of a run to `<folder>/export/<format_>/`, unless it is already there.

    Args:
        folder: the run's workdir.
        format_: a key of `FORMATS`.
        say: receives messages for the user.

    Returns:
        The exported file (for Orbax a folder), next to `DESCRIPTION`.

    Raises:
        UserError: the run has no finished student, a package is missing, or the folder holds something else.
        RunFailedError: the export did not read back as the student; it has been removed.
    """
    local_devices()  # or a line that says why there are none
    student = _load_student(folder)
    if format_ in PYTORCH and is_import_path(student.net.arch):
        raise UserError(
            f"{student.net.arch} has no names in PyTorch, which --format={format_} needs; export it as orbax or "
            "stablehlo"
        )
    if format_ in PYTORCH and (caution := torch_names.caution(student.net.arch, student.net.image_shape)):
        say(f"warning: {caution}")
    description = _describe(folder, format_, student)
    place, file = folder / EXPORTS / format_, description["file"]
    if place.exists():
        _check_is_there(place, description)
        say(f"already there: {place / file}")
        return place / file
    workdir.check_writable(folder)
    with workdir.lock(folder, say):
        temporary = place.with_name(f".{format_}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            FORMATS[format_].write(temporary / file, student)
            _check(FORMATS[format_], temporary / file, student)
            cost = _measure(folder, description["teacher"], student, say)
            digests = {"sha256": checkpoint.digests(temporary)}
            write_json(temporary / DESCRIPTION, {**description, _COST: cost, **digests})
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    say(f"written: {place / file}")
    return place / file


def _measure(
    folder: Path, teacher: dict[str, Any], student: Trained, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measures size and latency of student and teacher, if its module can be built, and shows a table."""
    device = local_devices().local[0]
    found = {}
    try:
        net = _network_of(teacher, folder, student.net)
        # The time does not depend on the weights.
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), net.abstract_variables())
        found["teacher"] = {"arch": net.arch, **latency.measure(net, zeros, device)}
    except UserError as error:
        say(f"measured without the teacher: {error}")
    found["student"] = {"arch": student.net.arch, **latency.measure(student.net, student.variables, device)}
    say(latency.describe(found, device.device_kind))
    return {"device": device.device_kind, "dtype": "float32", **found}


def _network_of(teacher: dict[str, Any], folder: Path, student: NetworkSpec) -> NetworkSpec:
    """Returns a run's teacher without its weights, which need not be there any more.

    Raises:
        UserError: no module of that name has as many parameters, as where the teacher was an object.
    """
    settings = read_object(folder / workdir.CONFIG, "; restore it", "config")
    net = dataclasses.replace(
        student, arch=teacher["arch"], train_argument=settings.get("teacher.train_argument", "")
    )
    count = count_parameters(net.abstract_variables()["params"])
    if count != teacher["parameters"]:
        raise UserError(f"{net.arch} has {count:,} parameters and the teacher had {teacher['parameters']:,}")
    return net


def _load_student(folder: Path) -> Trained:
    where = folder / STUDENT
    if not (where / weights.DESCRIPTION).exists() or not (folder / SUMMARY).exists():
        raise UserError(
            f"--workdir={folder} holds no finished student; run --stage=all with its --config there first"
        )
    student = weights.load_net(where)
    weights.check_weights(student.variables, student.net.abstract_variables(), where)
    return student


def _describe(folder: Path, format_: str, student: Trained) -> dict[str, Any]:
    """Returns the contents of `DESCRIPTION`."""
    kind = FORMATS[format_]
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        settings = json.loads((folder / workdir.CONFIG).read_text(encoding="utf-8"))["results"]
        return {
            "format": format_,
            "file": STUDENT + kind.suffix,
            "input": kind.input,
            **dataclasses.asdict(student.net),
            "weights_sha256": student.sha256,
            "teacher": {**summary["teacher"], "weights_sha256": settings[workdir.TEACHER]},
            "dataset": summary["dataset"],
            # Summaries and exports of earlier runs have no classes.
            **{key: summary[key] for key in ("classes",) if key in summary},
            "versions": {
                "run": summary["versions"],
                "export": {package: metadata.version(package) for package in sorted({"jax", kind.package})},
            },
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / SUMMARY} or {workdir.CONFIG} beside it is damaged ({error}); restore them"
        ) from error
    except metadata.PackageNotFoundError as error:
        raise UserError(f"--format={format_} needs {kind.package}; pip install 'cudfkd_jax[{format_}]'") from error


def _check_is_there(place: Path, description: dict[str, Any]) -> None:
    """Raises `UserError` if the folder holds anything but this export, whatever its package versions."""
    try:
        held = json.loads((place / DESCRIPTION).read_text(encoding="utf-8"))
        found = checkpoint.digests(place)
        del found[DESCRIPTION]
        held.pop(_COST, None)  # exports of earlier versions have none
        same = held == {**json.loads(json.dumps(description)), "versions": held["versions"], "sha256": found}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        same = False
    if not same:  # a damaged export, another student's, or a user's files
        raise UserError(f"{place} holds something else than this student; move it away to export again")


def _check(kind: Format, path: Path, student: Trained) -> None:
    try:
        kind.check(path, student)
    except Exception as error:  # a faulty file can fail anywhere in its reader
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunFailedError(f"{path} does not read back as the student ({detail}); export it again") from error
