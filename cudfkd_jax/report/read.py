"""Reading of a run's files for a report; damaged or missing files are omitted and reported."""

import dataclasses
import io
import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from PIL import Image, UnidentifiedImageError

from cudfkd_jax.evaluation import diagnostics
from cudfkd_jax.evaluation import observations as observed
from cudfkd_jax.evaluation.summary import SUMMARY
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import records, workdir
from cudfkd_jax.storage.files import read_object
from cudfkd_jax.storage.records import Record

METRICS, SAMPLES = "metrics.jsonl", "samples"


@dataclasses.dataclass(frozen=True)
class Run:
    """The readable contents of a run's files.

    Attributes:
        folder: its workdir.
        name: a short name that identifies the run in a legend.
        config: all settings by dotted key.
        records: one record per epoch.
        summary: the summary of a finished run; empty before.
        teacher: its architecture, parameters and metrics, as far as known.
        observations: per-image observations by epoch; see `evaluation.observations`.
        pictures: PNG files of `samples/` by kind ("epoch", "classes") and epoch.
        notes: remarks for the reader on the state of the run, one sentence each.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    records: list[Record]
    summary: dict[str, Any]
    teacher: dict[str, Any]
    observations: dict[int, dict[str, Any]]
    pictures: dict[str, dict[int, bytes]]
    notes: tuple[str, ...]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Returns the epochs with a finite value of `key`, and these values."""
        pairs = [(r["epoch"], float(r[key])) for r in self.records if is_finite(r.get(key))]
        return [epoch for epoch, _ in pairs], [value for _, value in pairs]


def printable(text: str) -> str:
    """Replaces each non-printable character by a question mark."""
    return "".join(character if character.isprintable() else "?" for character in text)


def is_number(value: Any) -> TypeGuard[float]:
    """Returns whether a value is a JSON number, including NaN and infinity."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def is_finite(value: Any) -> TypeGuard[float]:
    """Returns whether a value is a finite number and so can be drawn."""
    return is_number(value) and math.isfinite(value)


def read(folder: Path, name: str = "") -> Run:
    """Reads a data-free run in any state: finished, running, stopped or damaged.

    Args:
        folder: its workdir.
        name: name of the run; "": the folder's name.

    Raises:
        UserError: the folder holds no run, or its configuration cannot be read.
    """
    notes: list[str] = []
    config = read_config(folder)
    history = _read_records(folder / METRICS, notes)
    summary = _read_object(folder / SUMMARY, notes)
    if not summary:
        notes.insert(0, _state(folder, len(history), config.get("distill.epochs")))
    if not_finite := _not_finite(history):
        notes.append(f"Not finite, and left out of the curves: {not_finite}.")
    observations = _read_observations(folder, notes)
    notes += _warnings(config, history, observations)
    return Run(
        folder=folder,
        name=printable(name or folder.absolute().name),
        config=config,
        records=history,
        summary=summary,
        teacher=_object(summary.get("teacher"))
        or _read_object(folder / observed.FOLDER / observed.TEACHER, notes),
        observations=observations,
        pictures={kind: _read_pictures(folder, kind, notes) for kind in ("epoch", "classes")},
        notes=tuple(notes),
    )


def _warnings(
    config: dict[str, Any], history: list[Record], observations: dict[int, dict[str, Any]]
) -> Iterator[str]:
    """Yields signs of a failing run, one sentence each."""
    if observations:
        epoch = max(observations)
        yield from (f"Epoch {epoch}: {text}." for text in diagnostics.of_images(observations[epoch]["synthetic"]))
    classes = config.get("data.num_classes")
    finite = [{key: value for key, value in record.items() if is_finite(value)} for record in history]
    if type(classes) is int and classes > 1:
        yield from (f"{text[0].upper()}{text[1:]}." for text in diagnostics.of_student(finite, classes))


def read_config(folder: Path) -> dict[str, Any]:
    """Reads all settings of a run, by dotted key.

    Raises:
        UserError: the folder holds no run, or its configuration is damaged.
    """
    path = folder / workdir.CONFIG
    if not path.is_file():
        raise UserError(f"--workdir={folder} holds no distilled run (no {workdir.CONFIG}); name a run's folder")
    return read_object(path, " or of another version; restore it", "config")


def _read_records(path: Path, notes: list[str]) -> list[Record]:
    held = records.read(path)
    lines = len(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.exists() else 0
    whole = list(itertools.takewhile(lambda record: type(record.get("epoch")) is int, held))
    if len(whole) < lines:
        notes.append(
            f"{METRICS} is cut off or damaged in line {len(whole) + 1}; {len(whole)} whole epochs of it are shown."
        )
    return whole


def _state(folder: Path, done: int, epochs: Any) -> str:
    of = f" of {epochs}" if is_number(epochs) else ""
    text = f"No epoch{of} is" if not done else f"{done}{of} epochs are"
    try:
        workdir.check_free(folder)
    except UserError:
        return f"This run is still going: {text} finished. The same command writes this page anew."
    except OSError:  # another user's folder
        return f"This run is not finished: {text} done."
    return f"This run was stopped before its end: {text} finished. Rerun the same command to resume."


def _not_finite(history: list[Record]) -> str:
    """Lists the metrics that became NaN or infinite, each with the first such epoch."""
    first: dict[str, int] = {}
    for record in history:
        for key, value in record.items():
            if is_number(value) and not math.isfinite(value):
                first.setdefault(key, record["epoch"])
    return ", ".join(f"{key} (first in epoch {epoch})" for key, epoch in first.items())


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """Reads a JSON object; returns an empty one if the file is missing or damaged."""
    if not path.exists():
        return {}
    try:
        return read_object(path, "")
    except UserError:
        notes.append(f"{path.name} is damaged and left out.")
        return {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_observations(folder: Path, notes: list[str]) -> dict[int, dict[str, Any]]:
    found = {}
    for epoch, path in _by_epoch(folder / observed.FOLDER, "epoch", "json").items():
        value = _read_object(path, notes)
        if not value:
            continue
        try:
            found[epoch] = _checked(value)
        except (KeyError, TypeError, ValueError):
            notes.append(f"{path.name} is damaged and left out.")
    return found


def _checked(value: dict[str, Any]) -> dict[str, Any]:
    """Returns an observation after checking that lists hold only numbers and image counts are comparable."""
    synthetic, test = value["synthetic"], value.get("test")
    lists = [synthetic["difficulty"], synthetic["classes"]]
    if test:
        lists += [test[key] for key in ("loyalty", "loyalty_released", "images", "student", "teacher")]
        if len({len(test[key]) for key in ("images", "student", "teacher")}) > 1:
            raise ValueError
    if not all(isinstance(each, list) and all(map(is_number, each)) for each in lists):
        raise ValueError
    classes = synthetic["classes"]
    if not (
        all(map(is_finite, [*classes, synthetic.get("spread", 0.0)]))
        and classes
        and min(classes) >= 0 < max(classes)
    ):
        raise ValueError
    return {"synthetic": {**synthetic, "loss": printable(str(synthetic["loss"]))}, "test": test}


def _read_pictures(folder: Path, kind: str, notes: list[str]) -> dict[int, bytes]:
    found = {}
    for epoch, path in _by_epoch(folder / SAMPLES, kind, "png").items():
        try:
            content = path.read_bytes()
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
            found[epoch] = content
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
            notes.append(f"{SAMPLES}/{path.name} is damaged and left out.")
    return found


def _by_epoch(folder: Path, kind: str, suffix: str) -> dict[int, Path]:
    matches = ((re.fullmatch(rf"{kind}_(\d+)\.{suffix}", path.name), path) for path in sorted(folder.glob("*")))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))
