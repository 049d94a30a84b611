"""What the forms of entries share: columns, groups of results, and what is handed on to be written."""

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
    """What an entry came to.

    Attributes:
        tables: in Markdown, by their headings, "" for none.
        picture: None where there is nothing to draw.
        samples: pictures of synthetic images as PNG files, by the ends of their names, with captions.
    """

    tables: dict[str, str]
    picture: Picture | None = None
    samples: Mapping[str, tuple[bytes, str]] = MappingProxyType({})


def grouped(results: Iterable[Result], attribute: str) -> dict[str, list[Result]]:
    """The results by an attribute of their runs, in the order of its first appearances."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(getattr(result.run, attribute), []).append(result)
    return found


def outcomes_of(results: Iterable[Result]) -> list[Outcome]:
    """What the runs came to."""
    return [result.outcome for result in results]


def distilled(results: Sequence[Result]) -> list[Summary]:
    """The summaries of students that a teacher was distilled into."""
    return [summary for summary in summaries(outcomes_of(results)) if "teacher" in summary]


def teachers_of(results: Sequence[Result]) -> str:
    """A line with the accuracies of the teachers."""
    found = {s["teacher"]["acc1"]: s["teacher"]["arch"] for s in distilled(results) if "acc1" in s["teacher"]}
    if not found:
        return ""
    return f"Teacher: {', '.join(f'{arch} of {acc1:.2f} %' for acc1, arch in found.items())}.\n\n"
