"""Planning of runs from configurations: every distinct run once, after its teacher.

A run's folder is named by a hash of the settings that affect its results, so that equal runs share it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from cudfkd_jax.config import access, build, jobs, loading, validate
from cudfkd_jax.config.identity import result_settings
from cudfkd_jax.experiments import launcher
from cudfkd_jax.experiments.display import Cell, Durations
from cudfkd_jax.experiments.launcher import Outcome
from cudfkd_jax.runs.teacher import find_teacher
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage.workdir import TEACHER

_NAME = 12  # hexadecimal digits


class RunSpec(NamedTuple):
    """The specification of a run.

    Attributes:
        name: the name shown to the user.
        file: configuration file with its arguments.
        overrides: `--config.key=value`, without the seed and without the checkpoint of a teacher to be trained.
        seed: the student's seed; None takes the configuration's, as a teacher to be trained does.
        stage: "distill", "scratch" or "kd".
    """

    name: str
    file: str
    overrides: tuple[str, ...]
    seed: int | None = None
    stage: str = "distill"


class PlannedRun(NamedTuple):
    """A run with its cell and its teacher's, None for a given trained teacher."""

    wanted: RunSpec
    cell: Cell
    teacher: Cell | None


def load(wanted: RunSpec) -> ConfigDict:
    """Loads and checks the configuration of a run; its seed is the teacher's.

    Raises:
        UserError: the configuration is wrong.
    """
    config = loading.load_checked(wanted.file, wanted.overrides)
    validate.check_one_process(config, "each of several runs")
    validate.check_dtype_settled(config, "each of several runs")
    return config


def plan(wanted: Sequence[RunSpec], folder: Path) -> list[PlannedRun]:
    """Checks the configuration of each run and gives it a folder.

    Args:
        wanted: the runs, in any order, possibly with repetitions.
        folder: receives `cells/<hash>/` and `teachers/<hash>/`.

    Raises:
        UserError: a configuration is wrong; nothing is written.
    """
    weights: dict[str, str] = {}
    # Runs that differ in their seed or stage share a configuration.
    distinct_settings = {(each.file, each.overrides): each for each in wanted}
    configs = {settings: load(each) for settings, each in distinct_settings.items()}
    return [_plan(each, configs[each.file, each.overrides], folder, weights) for each in wanted]


def _plan(wanted: RunSpec, config: ConfigDict, folder: Path, weights: dict[str, str]) -> PlannedRun:
    """Plans one run; `weights` caches the digests of given teachers by their required settings."""
    arguments = [f"--config={wanted.file}", f"--stage={wanted.stage}", *wanted.overrides]
    teacher, of_teacher = None, result_settings(config, "teacher")
    if (source := jobs.teacher_source(config)).is_given:
        asked = loading.digest({"checkpoint": config.teacher.checkpoint, **of_teacher})
        if asked not in weights:
            found = find_teacher(source, folder)
            assert found
            weights[asked] = found.sha256
        identity = weights[asked]
    else:
        teacher = _teacher_cell(wanted, config, folder / "teachers" / loading.digest(of_teacher)[:_NAME])
        identity = teacher.folder.name
        arguments.append(f"--config.teacher.checkpoint={teacher.folder}")
    decisive = result_settings(config, wanted.stage) | {TEACHER: identity, "stage": wanted.stage}
    if wanted.seed is not None:
        decisive["seed"] = wanted.seed
        arguments.append(f"--config.seed={wanted.seed}")
    if updates := config.log.majorise_minimise_updates:  # affects no result, only the records
        decisive["log.majorise_minimise_updates"] = updates
    where = folder / "cells" / loading.digest(decisive)[:_NAME]
    return PlannedRun(wanted, Cell(wanted.name, where, tuple(arguments), _part(wanted.stage)), teacher)


def _teacher_cell(wanted: RunSpec, config: ConfigDict, folder: Path) -> Cell:
    name = f"teacher {config.teacher.module or config.teacher.arch} on {config.data.name}"
    if config.teacher.stop_accuracy:
        name += f", stopped at {config.teacher.stop_accuracy:g} %"
    return Cell(name, folder, (f"--config={wanted.file}", "--stage=teacher", *wanted.overrides), "teacher")


def distinct(planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Returns the first run of each folder."""
    return list({each.cell.folder: each for each in reversed(planned)}.values())[::-1]


def missing_teachers(planned: Sequence[PlannedRun]) -> list[Cell]:
    """Returns the distinct untrained teachers of the unfinished runs."""
    needed = {p.teacher.folder: p.teacher for p in planned if p.teacher and not launcher.finished(p.cell)}
    return [teacher for teacher in needed.values() if not launcher.finished(teacher)]


def check_surroundings(planned: Sequence[PlannedRun]) -> None:
    """Checks devices, data and teachers on this machine for the unfinished runs, before anything is written.

    The checks run in a separate process, so that the devices stay free for the runs.

    Raises:
        UserError: an unfinished run would fail.
    """
    waiting = [each.wanted for each in distinct(planned) if not launcher.finished(each.cell)]
    if waiting:
        launcher.elsewhere(_check_here, waiting)


def _check_here(wanted: Sequence[RunSpec]) -> None:
    read: set[str] = set()
    for each in wanted:
        config = load(each)
        with_data = [each.stage] * (each.stage != "distill") + ["teacher"] * (not access.gives_teacher(config))
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
    durations: Durations | None = None,
) -> list[Outcome]:
    """Trains the missing teachers, then executes the unfinished runs; failures do not affect other runs.

    Args:
        planned: the runs, possibly with repetitions.
        jobs: number of concurrent runs.
        say: prints messages for the user.
        lost: errors of runs that failed in earlier calls, by folder; these are not retried, and new ones added.
        durations: predicts how long the runs take, and learns from them; by default it knows none.

    Returns:
        The outcomes, in the order of `planned`.
    """
    lost = {} if lost is None else lost
    durations = durations or Durations()
    missing = [teacher for teacher in missing_teachers(planned) if teacher.folder not in lost]
    if missing:
        say(f"{len(missing)} teacher{'s' * (len(missing) > 1)} first")
    _run(missing, jobs, say, lost, durations)
    once = distinct(planned)
    for each in once:
        if each.teacher and each.teacher.folder in lost and not launcher.finished(each.cell):
            lost[each.cell.folder] = f"no teacher: {lost[each.teacher.folder]}"
    found = _run([each.cell for each in once if each.cell.folder not in lost], jobs, say, lost, durations)
    return [
        found[cell.folder]._replace(cell=cell) if cell.folder in found else Outcome(cell, None, lost[cell.folder])
        for cell in (each.cell for each in planned)
    ]


def _run(
    wanted: Sequence[Cell],
    jobs: int,
    say: Callable[[str], None],
    lost: dict[Path, str],
    durations: Durations,
) -> dict[Path, Outcome]:
    outcomes = launcher.run_cells(wanted, jobs=jobs, say=say, durations=durations)
    found = {outcome.cell.folder: outcome for outcome in outcomes}
    lost.update({folder: outcome.error for folder, outcome in found.items() if outcome.summary is None})
    return found


def _part(stage: str) -> str:
    return "" if stage == "distill" else stage
