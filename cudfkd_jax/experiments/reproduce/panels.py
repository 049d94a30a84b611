"""Bars over one setting, and heat maps of two."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from cudfkd_jax.experiments.outcomes import Column, markdown, mean_and_deviation, row, summaries, values
from cudfkd_jax.experiments.reproduce.entry import Entry, Setting, label
from cudfkd_jax.experiments.reproduce.jobs import Result
from cudfkd_jax.experiments.reproduce.results import (
    ACC1,
    AGREE1,
    ALL,
    LOYALTY,
    Rendered,
    grouped,
    outcomes_of,
    teachers_of,
)
from cudfkd_jax.report import charts


def bars(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Draws one bar per value of a setting; columns, if any, are colours."""
    groups = grouped(results, "row")
    names = {name: label(name) for name in groups}
    columns = list(grouped(results, "column"))

    def numbers(column: str, of: Column) -> dict[str, list[float]]:
        return {
            names[g]: values(of, outcomes_of(r for r in rs if r.run.column == column)) for g, rs in groups.items()
        }

    if len(columns) > 1:
        panels = [charts.Bars(of.heading, {c: numbers(c, of) for c in columns}) for of in (ACC1, AGREE1, LOYALTY)]
    else:
        both = {of.heading.removesuffix(" last %"): numbers(columns[0], of) for of in (ACC1, AGREE1)}
        panels = [
            charts.Bars("last epoch, %", both),
            charts.Bars("loyalty (released), last", {"loyalty": numbers(columns[0], LOYALTY)}),
        ]
    done = summaries(outcomes_of(results))
    picture = charts.bars(entry.name, entry.title, panels, entry.axes[0]) if done else None
    heading = [entry.axes[0], *([""] if len(columns) > 1 else []), "runs", *(column.heading for column in ALL)]
    heading += ["paper's acc@1 %"] if entry.values else []
    lines = []
    for name, of_group in groups.items():
        for column, found in grouped(of_group, "column").items():
            papers = [f"{entry.values[name]:.2f}" if name in entry.values else ""] if entry.values else []
            of = [names[name], *([column] if len(columns) > 1 else [])]
            lines.append([*of, *row(ALL, outcomes_of(found)), *papers])
    title = f"The paper's values are of {entry.values_of}" if entry.values else ""
    return Rendered(
        {title: teachers_of(results) + markdown(heading, lines)},
        picture if summaries(outcomes_of(results)) else None,
    )


def changes(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Tabulates each change to the first row's settings with its gain in accuracy over that row, by seed."""
    groups = grouped(results, "row")
    base = {result.run.seed: result for result in next(iter(groups.values()))}
    lines = []
    for name, found in groups.items():
        differences = [
            now - before
            for result in found
            for now, before in zip(_acc1(result), _acc1(base[result.run.seed]), strict=False)
        ]
        gain = mean_and_deviation(differences, ACC1.digits) if base[found[0].run.seed] is not found[0] else ""
        own = {key: value for key, value in found[0].run.changes.items() if key in entry.varies}
        settings = ", ".join(f"`{key}={value}`" for key, value in own.items())
        lines.append([name, settings, *row(ALL, outcomes_of(found)), gain])
    heading = [*entry.axes, "runs", *(column.heading for column in ALL), "gain in acc@1 last"]
    return Rendered({"": teachers_of(results) + markdown(heading, lines)})


def _acc1(result: Result) -> list[float]:
    return values(ACC1, [result.outcome])


def heat_maps(entry: Entry, setting: Setting, results: Sequence[Result]) -> Rendered:
    """Draws heat maps of two settings, one panel per pair and metric."""
    rows, columns = (list(grouped(results, each)) for each in ("row", "column"))
    panels, lines, picture = [], [], None
    blocks = grouped(results, "block")
    for block, found in blocks.items():
        place = {(r.run.row, r.run.column): r for r in found}
        for of in (ACC1, AGREE1, LOYALTY):
            grid = [[_mean(of, place.get((r, c))) for c in columns] for r in rows]
            title = f"{block}\n{of.heading}" if len(blocks) > 1 else of.heading
            panels.append(charts.HeatMap(title, np.array(grid), of.digits))
        lines += [
            [block, r, c, *row(ALL, outcomes_of([place[r, c]]))] for r in rows for c in columns if (r, c) in place
        ]
    if summaries(outcomes_of(results)):
        picture = charts.heat_maps(
            entry.name,
            entry.title,
            "The last students; lighter is higher, each panel for itself.",
            panels,
            (entry.axes[0], rows),
            (entry.axes[1], columns),
            across=3 if len(blocks) > 1 else 1,
        )
    heading = ["", *entry.axes, "runs", *(column.heading for column in ALL)]
    return Rendered({"": markdown(heading, lines)}, picture)


def _mean(column: Column, result: Result | None) -> float:
    found = values(column, [result.outcome]) if result else []
    return statistics.fmean(found) if found else math.nan
