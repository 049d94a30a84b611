"""Sweeps over settings × seeds: one run per combination, summarised in a table and a picture."""

import itertools
import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cudfkd_jax.config import access, loading
from cudfkd_jax.experiments import plan
from cudfkd_jax.experiments.launcher import Outcome
from cudfkd_jax.experiments.outcomes import (
    COLUMNS,
    about,
    csv_text,
    failures,
    known,
    markdown,
    metric,
    row,
    summaries,
    values,
)
from cudfkd_jax.experiments.plan import PlannedRun, RunSpec
from cudfkd_jax.report import charts, plot
from cudfkd_jax.report.plot import Picture
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import workdir
from cudfkd_jax.storage.files import write_bytes

NAME = "sweep"  # of the output files
# The drawn metric is the first available one.
_DRAWN = (metric("acc@1, last epoch, %", "acc1_last", 2), metric("agree@1, synthetic, %", "agree1_synthetic", 2))


class Axis(NamedTuple):
    """A setting and its values, as written on the command line."""

    key: str
    values: tuple[str, ...]


Point = tuple[str, ...]  # one value per axis


def parse_axis(text: str) -> Axis:
    """Parses `key=value,value,…`; commas in parentheses belong to a value.

    Raises:
        UserError: the text has another form.
    """
    key, _, given = text.partition("=")
    chosen = tuple(re.split(r",(?![^(]*\))", given))
    if not key or not all(chosen):
        raise UserError(f"--set {text}: write a setting and its values, such as --set curriculum.lambda_0=2,2.5")
    return Axis(key.removeprefix("config."), chosen)


def sweep(
    file: str,
    axes: Sequence[Axis],
    seeds: Sequence[int],
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Distils with every combination of values and each seed, and writes `sweep.md`, `.csv`, `.png` and `.svg`.

    Args:
        file: a configuration file with its arguments.
        axes: the axes, of distinct settings.
        seeds: seeds of the students; the teacher takes the configuration's.
        folder: receives one folder per run in `cells/` and per distinct teacher in `teachers/`. Finished runs are
            kept, others resume.
        overrides: `--config.key=value` for every run.
        jobs: number of concurrent runs.
        say: prints messages for the user.

    Returns:
        The outcomes, in the order of the axes and then of the seeds.

    Raises:
        UserError: an argument is wrong; raised before any run starts.
    """
    planned = check(file, axes, seeds, folder, overrides)
    plan.check_surroundings(planned)
    if (different := len(plan.distinct(planned))) < len(planned):
        say(f"only {different} of {len(planned)} runs differ, for some of these settings decide no result")
    with workdir.lock(folder):
        outcomes = plan.run(planned, jobs=jobs, say=say)
        write(folder, axes, seeds, outcomes)
    return outcomes


def check(
    file: str, axes: Sequence[Axis], seeds: Sequence[int], folder: Path, overrides: Sequence[str]
) -> list[PlannedRun]:
    """Plans the runs of a sweep and checks their configurations.

    Raises:
        UserError: a setting is unknown, given twice or invalid in one of the runs.
    """
    base = loading.load(file)
    changed = loading.override(base, overrides)
    loading.check_keys((axis.key for axis in axes), base)
    keys = [axis.key for axis in axes]
    if "seed" in changed or "seed" in keys:
        raise UserError("seed: seeds are given by --seeds; leave it out")
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"--set names {key} twice; name it once, with all its values")
        if key in changed:
            raise UserError(f"--set and --config.{key} both give {key}; leave one of them out")
    for axis in axes:
        _check_values(file, axis, overrides)
    workdir.check_writable(folder)
    wanted = [
        RunSpec(f"{_described(axes, point)} seed {seed}", file, (*overrides, *_arguments(axes, point)), seed)
        for point in points(axes)
        for seed in seeds
    ]
    return plan.plan(wanted, folder)


def points(axes: Sequence[Axis]) -> list[Point]:
    """Returns every combination of values; the last axis varies fastest."""
    return list(itertools.product(*(axis.values for axis in axes)))


def default_workdir(file: str, axes: Sequence[Axis], overrides: Sequence[str]) -> Path:
    """Returns runs/sweep-<configuration>-<settings>."""
    name = loading.run_name(file, loading.override(loading.load(file), overrides))
    return Path("runs", "-".join([NAME, name, *(axis.key for axis in axes)]))


def write(folder: Path, axes: Sequence[Axis], seeds: Sequence[int], outcomes: Sequence[Outcome]) -> str:
    """Writes the table, the unrounded numbers and the picture, and returns the table."""
    keys = [(*point, seed) for point in points(axes) for seed in seeds]
    by_point = {
        point: [o for key, o in zip(keys, outcomes, strict=True) if key[:-1] == point] for point in points(axes)
    }
    columns = known(COLUMNS, outcomes)
    heading = [*(axis.key for axis in axes), "runs", *(column.heading for column in columns)]
    table = markdown(heading, [[*point, *row(columns, found)] for point, found in by_point.items()])
    picture = draw(axes, by_point)
    note = "".join(f"{about(summary)}\n\n" for summary in summaries(outcomes)[:1])
    shown = f"\n![{picture.title}]({NAME}.png)\n\n{picture.caption}\n" if picture else ""
    text = note + table + shown + failures(outcomes)
    heading = [*(axis.key for axis in axes), "seed"]
    write_bytes(folder / f"{NAME}.md", text.encode())
    write_bytes(folder / f"{NAME}.csv", csv_text(heading, outcomes, keys, COLUMNS).encode())
    if picture:
        plot.write(picture, folder, NAME)
    return text


def draw(axes: Sequence[Axis], by_point: dict[Point, list[Outcome]]) -> Picture | None:
    """Draws bars over one setting or a heat map over two; None for more, or without results."""
    column = next((c for c in _DRAWN if any(values(c, found) for found in by_point.values())), None)
    if column is None or len(axes) > 2:
        return None
    measured = {point: values(column, found) for point, found in by_point.items()}
    title = " and ".join(axis.key for axis in axes)
    if len(axes) == 1:
        panel = charts.Bars(column.heading, {title: {point[0]: found for point, found in measured.items()}})
        return charts.bars(NAME, title, [panel], title)
    rows, columns = axes
    means = [
        [statistics.fmean(found) if (found := measured[r, c]) else math.nan for c in columns.values]
        for r in rows.values
    ]
    heat = charts.HeatMap(column.heading, np.array(means), column.digits)
    return charts.heat_maps(NAME, title, "Mean over seeds.", [heat], rows, columns)


def _check_values(file: str, axis: Axis, overrides: Sequence[str]) -> None:
    """Raises UserError if a value is invalid for the setting or repeated."""
    found = []
    for value in axis.values:
        config = loading.load(file)
        loading.override(config, [*overrides, f"--config.{axis.key}={value}"])
        found.append(access.get(config, axis.key))
        if found[-1] in found[:-1]:
            raise UserError(f"--set {axis.key} names {value} twice; name it once")


def _arguments(axes: Sequence[Axis], point: Point) -> list[str]:
    return [f"--config.{axis.key}={value}" for axis, value in zip(axes, point, strict=True)]


def _described(axes: Sequence[Axis], point: Point) -> str:
    return " ".join(f"{axis.key}={value}" for axis, value in zip(axes, point, strict=True))
