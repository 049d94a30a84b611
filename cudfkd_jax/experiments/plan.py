"""From configurations to the runs that they need: every distinct run once, every distinct teacher before it.

A run's folder is named by the settings that decide its result, so that whoever needs the same run finds it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from cudfkd_jax.config import access, build, loading, validate
from cudfkd_jax.config.identity import result_settings
from cudfkd_jax.experiments import launcher
from cudfkd_jax.experiments.launcher import Job, Outcome
from cudfkd_jax.runs.teacher import find_teacher
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage.workdir import TEACHER

_NAME = 12  # hexadecimal digits


class RunSpec(NamedTuple):
    """A run that somebody needs.

    Attributes:
        name: shown to the user.
        file: configuration file with its arguments.
        overrides: `--config.key=value`, but neither the seed nor the teacher's checkpoint of a trained one.
        seed: of the student; None: the configuration's. A teacher that is trained has the configuration's.
        stage: "distill", "scratch" or "kd".
    """

    name: str
    file: str
    overrides: tuple[str, ...]
    seed: int | None = None
    stage: str = "distill"


class PlannedRun(NamedTuple):
    """A run with its place, and the run of its teacher, None where a trained one is given."""

    wanted: RunSpec
    cell: Job
    teacher: Job | None


def load(wanted: RunSpec) -> ConfigDict:
    """The configuration of a run, checked; its seed is the teacher's.

    Raises:
        UserError: it is wrong.
    """
    config = loading.load_checked(wanted.file, wanted.overrides)
    validate.check_one_process(config, "each of several runs")
    validate.check_dtype_settled(config, "each of several runs")
    return config


def plan(wanted: Sequence[RunSpec], folder: Path) -> list[PlannedRun]:
    """Checks the configuration of each run and gives it a folder.

    Args:
        wanted: in any order, the same run more than once or not.
        folder: receives `cells/<hash>/` and `teachers/<hash>/`.

    Raises:
        UserError: a configuration is wrong; nothing is written.
    """
    weights: dict[str, str] = {}
    return [_plan(each, folder, weights) for each in wanted]


def _plan(wanted: RunSpec, folder: Path, weights: dict[str, str]) -> PlannedRun:
    """`weights` keeps the digests of given teachers, by what is asked of them."""
    config = load(wanted)
    arguments = [f"--config={wanted.file}", f"--stage={wanted.stage}", *wanted.overrides]
    teacher, of_teacher = None, result_settings(config, "teacher")
    if config.teacher.checkpoint:
        asked = loading.digest({"checkpoint": config.teacher.checkpoint, **of_teacher})
        if asked not in weights:
            found = find_teacher(config, folder)
            assert found
            weights[asked] = found.sha256
        identity = weights[asked]
    else:
        teacher = _teacher_cell(wanted, config, folder / "teachers" / loading.digest(of_teacher)[:_NAME])
        identity = teacher.folder.name
        arguments.append(f"--config.teacher.checkpoint={teacher.folder}")
    if wanted.seed is not None:
        config.seed = wanted.seed
        arguments.append(f"--config.seed={wanted.seed}")
    decisive = result_settings(config, wanted.stage) | {TEACHER: identity, "stage": wanted.stage}
    if updates := config.log.majorise_minimise_updates:  # changes no result, and what is recorded of it
        decisive["log.majorise_minimise_updates"] = updates
    where = folder / "cells" / loading.digest(decisive)[:_NAME]
    return PlannedRun(wanted, Job(wanted.name, where, tuple(arguments), _part(wanted.stage)), teacher)


def _teacher_cell(wanted: RunSpec, config: ConfigDict, folder: Path) -> Job:
    name = f"teacher {config.teacher.module or config.teacher.arch} on {config.data.name}"
    if config.teacher.stop_accuracy:
        name += f", stopped at {config.teacher.stop_accuracy:g} %"
    return Job(name, folder, (f"--config={wanted.file}", "--stage=teacher", *wanted.overrides), "teacher")


def distinct(planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The first of those that have the same place."""
    return list({each.cell.folder: each for each in reversed(planned)}.values())[::-1]


def missing_teachers(planned: Sequence[PlannedRun]) -> list[Job]:
    """The teachers to be trained before what is not finished of these runs, each once."""
    needed = {p.teacher.folder: p.teacher for p in planned if p.teacher and not launcher.finished(p.cell)}
    return [teacher for teacher in needed.values() if not launcher.finished(teacher)]


def check_surroundings(planned: Sequence[PlannedRun]) -> None:
    """Refuses what the unfinished runs would find wrong on this machine: devices, data, teachers.

    In a process of its own, for devices belong to the runs.

    Raises:
        UserError: nothing has been written.
    """
    waiting = [each.wanted for each in distinct(planned) if not launcher.finished(each.cell)]
    if waiting:
        launcher.elsewhere(_check_here, waiting)


def _check_here(wanted: Sequence[RunSpec]) -> None:
    read: set[str] = set()
    for each in wanted:
        config = load(each)
        with_data = [each.stage] * (each.stage != "distill") + ["teacher"] * (not config.teacher.checkpoint)
        validate.check_devices(config, ["distill", *with_data] if each.stage == "distill" else with_data)
        if config.data.source == access.NO_DATA:
            if with_data:
                raise UserError(
                    f"data.source={access.NO_DATA} has no images to train a {with_data[-1]} on; "
                    "name a trained one with --config.teacher.checkpoint"
                )
            continue
        splits = ("train", "test") if with_data else ("test",)
        key = json.dumps([splits, config.data.to_dict()], sort_keys=True)
        if key not in read:
            build.dataset(config, splits)
            read.add(key)


def run(
    planned: Sequence[PlannedRun],
    *,
    jobs: int = 1,
    say: Callable[[str], None] = print,
    lost: dict[Path, str] | None = None,
) -> list[Outcome]:
    """Trains the teachers that are missing, then runs what is not finished; a failure stops nothing else.

    Args:
        planned: what is to be run; the same run may be among them more than once.
        jobs: runs at a time.
        say: told what a user should read.
        lost: why runs of earlier calls failed, by folder; they are not tried again, and new ones are added.

    Returns:
        What each came to, in their order.
    """
    lost = {} if lost is None else lost
    missing = [teacher for teacher in missing_teachers(planned) if teacher.folder not in lost]
    if missing:
        say(f"{len(missing)} teacher{'s' * (len(missing) > 1)} first")
    _run(missing, jobs, say, lost)
    once = distinct(planned)
    for each in once:
        if each.teacher and each.teacher.folder in lost and not launcher.finished(each.cell):
            lost[each.cell.folder] = f"no teacher: {lost[each.teacher.folder]}"
    found = _run([each.cell for each in once if each.cell.folder not in lost], jobs, say, lost)
    return [
        found[cell.folder]._replace(cell=cell) if cell.folder in found else Outcome(cell, None, lost[cell.folder])
        for cell in (each.cell for each in planned)
    ]


def _run(
    wanted: Sequence[Job], jobs: int, say: Callable[[str], None], lost: dict[Path, str]
) -> dict[Path, Outcome]:
    found = {outcome.cell.folder: outcome for outcome in launcher.run_cells(wanted, jobs=jobs, say=say)}
    lost.update({folder: outcome.error for folder, outcome in found.items() if outcome.summary is None})
    return found


def _part(stage: str) -> str:
    return "" if stage == "distill" else stage
