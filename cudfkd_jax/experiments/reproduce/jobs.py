"""Planning of an entry's runs in a workdir."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cudfkd_jax.config import loading
from cudfkd_jax.experiments import plan
from cudfkd_jax.experiments.launcher import Outcome, finished
from cudfkd_jax.experiments.plan import PlannedRun, RunSpec
from cudfkd_jax.experiments.reproduce.entry import Entry, Run, Setting
from cudfkd_jax.runs.supervised import NET
from cudfkd_jax.runtime.errors import UserError

_OWN = ("seed", "method", "teacher.arch", "student.arch")  # of every entry


class Job(NamedTuple):
    """An entry at a scale, and the plan of each of its runs."""

    entry: Entry
    setting: Setting
    planned: list[PlannedRun]


class Result(NamedTuple):
    """A run and its outcome."""

    run: Run
    outcome: Outcome


def prepare(
    entries: Sequence[Entry],
    scale: str,
    folder: Path,
    configs: Path,
    overrides: Sequence[str],
    recorded: Path | None = None,
) -> list[Job]:
    """Checks every run of these entries and gives it a folder.

    Args:
        entries: entries available at the scale.
        scale: one of `entry.SCALES`.
        folder: the workdir; equal runs of several entries share a folder in it.
        configs: the folder of configuration files.
        overrides: `--config.key=value` for every run.
        recorded: a folder with `cells/` and `teachers/` of earlier runs, used if the workdir lacks a run.

    Raises:
        UserError: an override is wrong, or changes a setting that an entry varies.
    """
    settings = [entry.scales[scale] for entry in entries]
    if overrides:
        for entry, setting in zip(entries, settings, strict=True):
            _check_overrides(entry, setting, configs, overrides)
    wanted = [_wanted(run, configs, overrides) for setting in settings for run in setting.runs]
    planned = iter(_recorded(each, recorded) if recorded else each for each in plan.plan(wanted, folder))
    return [
        Job(entry, setting, list(itertools.islice(planned, len(setting.runs))))
        for entry, setting in zip(entries, settings, strict=True)
    ]


def _recorded(planned: PlannedRun, folder: Path) -> PlannedRun:
    """Points a run, or its teacher, to the recorded folder if only that contains its outcome."""
    cell, teacher = planned.cell, planned.teacher
    if teacher and not finished(teacher):
        kept = teacher._replace(folder=_from_here(folder) / "teachers" / teacher.folder.name, recorded=True)
        if finished(kept) and (kept.folder / kept.part / NET).exists():
            given = [text.replace(str(teacher.folder), str(kept.folder)) for text in cell.arguments]
            cell, teacher = cell._replace(arguments=tuple(given)), kept
    kept = cell._replace(folder=folder / "cells" / cell.folder.name, recorded=True)
    return planned._replace(cell=kept if finished(kept) and not finished(cell) else cell, teacher=teacher)


def all_runs(jobs: Sequence[Job]) -> list[PlannedRun]:
    """Returns the distinct runs of these entries."""
    return plan.distinct([planned for job in jobs for planned in job.planned])


def count(planned: Sequence[PlannedRun]) -> tuple[int, int]:
    """Returns the number of distinct runs, and how many of them are finished."""
    once = plan.distinct(planned)
    return len(once), sum(finished(each.cell) for each in once)


def changes_text(changes: Mapping[str, Any], overrides: Sequence[str] = ()) -> list[str]:
    """Formats changes as command-line arguments, without overridden ones."""
    overridden = {override.lstrip("-").partition("=")[0].removeprefix("config.") for override in overrides}
    return [f"--config.{key}={_text(value)}" for key, value in changes.items() if key not in overridden]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wanted(run: Run, configs: Path, overrides: Sequence[str]) -> RunSpec:
    file = _file(run.config, configs)
    return RunSpec(run.name, file, (*changes_text(run.changes, overrides), *overrides), run.seed, run.stage)


def _file(config: str, configs: Path) -> str:
    name, _, arguments = config.partition(":")
    return f"{_from_here(configs) / name}.py:{arguments}"


def _from_here(folder: Path) -> Path:
    """Returns the folder relative to the current one if possible, so that shown commands work on any machine."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _check_overrides(entry: Entry, setting: Setting, configs: Path, overrides: Sequence[str]) -> None:
    file = _file(setting.runs[0].config, configs)
    changed = loading.override(loading.load(file), overrides)
    for key in changed:
        if key in (*_OWN, *entry.varies):
            raise UserError(f"--config.{key}: {entry.name} decides it; leave it out, or use cudfkd sweep")
    if "teacher.checkpoint" in changed and any("noisy" in run.config for run in setting.runs):
        raise UserError(f"--config.teacher.checkpoint: {entry.name} trains its noisy teacher itself; leave it out")
