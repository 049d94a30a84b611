"""Shared parts of the forms of entries: columns, groups of results and the rendered output."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from cudfkd_jax.experiments.launcher import Outcome
from cudfkd_jax.experiments.outcomes import Summary, metric, summaries
from cudfkd_jax.experiments.reproduce.jobs import Result
from cudfkd_jax.report.plot import Picture

ACC1, AGREE1 = metric("acc@1 last %", "acc1_last", 2), metric("agree@1 last %", "agree1", 2)
LOYALTY = metric("loyalty (released) last", "loyalty_released", 4)
BEST = (
    metric("acc@1 best %", "acc1_best", 2),
    metric("agree@1 best %", "agree1_best", 2),
    metric("loyalty (released) best", "loyalty_released_best", 4),
)
ALL = (ACC1, AGREE1, LOYALTY, *BEST)


class Rendered(NamedTuple):
    """The rendered results of an entry.

    Attributes:
        tables: Markdown tables by heading, "" for none.
        picture: the picture, None without any.
        samples: PNG files of synthetic images with captions, by the suffix of the file name.
    """

    tables: dict[str, str]
    picture: Picture | None = None
    samples: Mapping[str, tuple[bytes, str]] = MappingProxyType({})


def grouped(results: Iterable[Result], attribute: str) -> dict[str, list[Result]]:
    """Groups the results by an attribute of their runs, in order of first appearance."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(getattr(result.run, attribute), []).append(result)
    return found


def outcomes_of(results: Iterable[Result]) -> list[Outcome]:
    """Returns the outcomes of the runs."""
    return [result.outcome for result in results]


def distilled(results: Sequence[Result]) -> list[Summary]:
    """Returns the summaries of the distilled students."""
    return [summary for summary in summaries(outcomes_of(results)) if "teacher" in summary]


def teachers_of(results: Sequence[Result]) -> str:
    """Returns a line with the teachers' accuracies."""
    found = {s["teacher"]["acc1"]: s["teacher"]["arch"] for s in distilled(results) if "acc1" in s["teacher"]}
    if not found:
        return ""
    return f"Teacher: {', '.join(f'{arch} of {acc1:.2f} %' for acc1, arch in found.items())}.\n\n"
