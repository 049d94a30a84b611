"""Figures from the records of runs: curves and single images."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cudfkd_jax.experiments.outcomes import markdown, row
from cudfkd_jax.experiments.reproduce.entry import Entry, Setting, label
from cudfkd_jax.experiments.reproduce.jobs import Result
from cudfkd_jax.experiments.reproduce.results import ALL, Rendered, grouped, outcomes_of, teachers_of
from cudfkd_jax.report import figures
from cudfkd_jax.report.plot import Picture
from cudfkd_jax.report.read import Run, read


def curves(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Draws accuracy over the epochs."""
    return _of_files(results, figures.accuracy)


def progress(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Draws accuracy over student steps and over minutes."""
    return _of_files(results, figures.accuracy_by_cost)


def loyalties(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Draws loyalty over the test images."""
    return _of_files(results, figures.loyalty)


def convergence(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Shows how often the inequality of Eq. 8 held, per epoch and averaged over all epochs."""
    runs = [read(r.outcome.cell.folder, label(r.run.row)) for r in results if r.outcome.summary]
    lines = []
    for run in runs:
        shares = [run.series(key)[1] for key in figures.CONVERGENCE]
        lines.append([run.name, *(f"{statistics.fmean(share):.1f}" if share else "" for share in shares)])
    picture = figures.convergence(runs) if runs else None
    heading = [entry.axes[0], *(f"{label}, % of the updates" for label in figures.CONVERGENCE.values())]
    return Rendered({"": markdown(heading, lines)}, picture)


def difficulty(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Shows single images early and late in one run."""
    (result,) = results
    if not result.outcome.summary:
        return Rendered({})
    run = read(result.outcome.cell.folder, "")
    epochs = [_nearest(epoch, list(run.observations)) for epoch in setting.epochs if run.observations]
    lines = []
    for epoch in dict.fromkeys(epochs):
        found = np.array(run.observations[epoch]["synthetic"]["difficulty"], float)
        low, middle, high = np.percentile(found, [10, 50, 90])
        lines.append([str(epoch), str(found.size), f"{middle:.4g}", f"{low:.4g}", f"{high:.4g}"])
    picture = figures.difficulty_histogram(run, list(dict.fromkeys(epochs)))
    samples = {}
    for when, wanted in zip(("early", "late"), setting.epochs, strict=True):
        if run.pictures["classes"]:
            epoch = _nearest(wanted, list(run.pictures["classes"]))
            caption = f"Synthetic images after epoch {epoch}, a row a class as the teacher sees it."
            samples[when] = run.pictures["classes"][epoch], caption
    heading = ["epoch", "synthetic images", "median difficulty", "10 % are below", "10 % are above"]
    return Rendered({"": markdown(heading, lines)}, picture, samples)


def _of_files(results: Sequence[Result], draw: Callable[[list[Run]], Picture | None]) -> Rendered:
    """Returns a table of the methods, and a picture drawn from their runs' records."""
    runs = [read(r.outcome.cell.folder, label(r.run.row)) for r in results if r.outcome.summary]
    picture = draw(runs) if runs else None
    lines = [
        [label(name), *row(ALL, outcomes_of(found)), _epoch_of(90.0, found)]
        for name, found in grouped(results, "row").items()
    ]
    heading = ["", "runs", *(column.heading for column in ALL), "first epoch with 90 %"]
    return Rendered({"": teachers_of(results) + markdown(heading, lines)}, picture)


def _epoch_of(accuracy: float, results: Sequence[Result]) -> str:
    """Returns the first run's first epoch that reaches an accuracy."""
    folder: Path = results[0].outcome.cell.folder
    if not results[0].outcome.summary:
        return ""
    return next((str(r["epoch"]) for r in read(folder).records if r.get("acc1", 0.0) >= accuracy), "none")


def _nearest(epoch: int, epochs: Sequence[int]) -> int:
    return min(epochs, key=lambda each: abs(each - epoch))
