"""Estimates of the duration of runs, from one timed round of each kind."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cudfkd_jax.config import identity, jobs
from cudfkd_jax.config.budget import Pace
from cudfkd_jax.experiments import launcher, plan
from cudfkd_jax.experiments.plan import PlannedRun, RunSpec
from cudfkd_jax.runs import timing
from cudfkd_jax.runtime import cli
from cudfkd_jax.runtime.errors import RunFailedError, UserError

_NO_PACE = ("seed", "curriculum", "evaluation")  # sections that affect results but not speed
_NO_PACE_KEYS = ("epochs", "temperature", "learning_rate", "stop_accuracy")


class Part(NamedTuple):
    """A pending run; its section is "distill", "teacher" or "scratch", and runs of one kind have the same pace."""

    wanted: RunSpec
    section: str
    epochs: int
    kind: str


def parts(planned: Sequence[PlannedRun]) -> dict[Path, Part]:
    """Returns the unfinished runs and missing teachers, by folder."""
    found: dict[Path, Part] = {}
    missing = {teacher.folder for teacher in plan.missing_teachers(planned)}
    for each in planned:
        if each.teacher and each.teacher.folder in missing:
            found.setdefault(each.teacher.folder, _part(each.wanted, "teacher"))
        if not launcher.finished(each.cell):
            found.setdefault(each.cell.folder, _part(each.wanted, each.wanted.stage))
    return found


def estimate(
    coming: Mapping[Path, Part],
    say: Callable[[str], None],
    measure: Callable[[RunSpec, str], Pace | str] | None = None,
) -> dict[Path, float]:
    """Estimates the seconds of each run, run alone and without evaluation; runs that cannot be timed are left out.

    Args:
        coming: the result of `parts`.
        say: prints messages for the user.
        measure: times a kind of run, or returns why it cannot; by default in a separate process.

    Raises:
        UserError: a run's configuration is wrong.
    """
    paces: dict[str, Pace | str] = {}
    kinds = list(dict.fromkeys(part.kind for part in coming.values()))
    for number, kind in enumerate(kinds, 1):
        part = next(part for part in coming.values() if part.kind == kind)
        say(f"timing a round, {number} of {len(kinds)}: {part.section} of {part.wanted.file.rpartition('/')[2]}")
        paces[kind] = pace = (measure or measure_elsewhere)(part.wanted, part.section)
        if isinstance(pace, str):
            say(f"  not timed: {pace}")
    return {
        folder: pace.start_s + part.epochs * pace.epoch_s
        for folder, part in coming.items()
        if isinstance(pace := paces[part.kind], Pace)
    }


def measure_elsewhere(wanted: RunSpec, section: str) -> Pace | str:
    """Returns a run's pace, including its process's start, or the error unless the configuration is wrong."""
    try:
        return launcher.elsewhere(_measure, wanted, section, time.time())
    except RunFailedError as error:
        return str(error)


def _measure(wanted: RunSpec, section: str, begun: float) -> Pace | str:
    cli.use_compilation_cache()
    process_s = time.time() - begun
    config = plan.load(wanted)
    try:
        if section == "distill":
            pace = timing.distillation_pace(lambda: jobs.untrained_job(config))
        else:
            pace = timing.supervised_pace(lambda: jobs.first_supervised_job(config, section))
    except UserError:
        raise
    except Exception as error:  # for example out of memory, which the run will report
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return pace._replace(start_s=process_s + pace.start_s)


def _part(wanted: RunSpec, section: str) -> Part:
    config = plan.load(wanted)
    decisive = {
        key: value
        for key, value in identity.result_settings(config, section).items()
        if key.split(".")[0] not in _NO_PACE and key.rpartition(".")[2] not in _NO_PACE_KEYS
    }
    kind = [section, config.teacher.module or config.teacher.arch if section == "distill" else "", decisive]
    return Part(wanted, section, config[section].epochs, json.dumps(kind, sort_keys=True))
