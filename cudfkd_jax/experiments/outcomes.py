"""Tables of several runs' results: columns, means over seeds, Markdown and CSV."""

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from cudfkd_jax.evaluation.summary import TEST_METRICS
from cudfkd_jax.experiments.launcher import Outcome

Summary = dict[str, Any]


class Column(NamedTuple):
    """A column of the table: its heading, its value from a summary, and digits after the point."""

    heading: str
    value: Callable[[Summary], float | None]
    digits: int


def student(summary: Summary) -> dict[str, Any]:
    """Returns the metrics of the network that a run trained.

    For a network trained on the data only the last epoch's are known, and serve as the best ones too.
    """
    if "student" in summary:
        return dict(summary["student"])
    network = summary["network"]
    return (
        network
        | {f"{name}_best": network[name] for name in TEST_METRICS if name in network}
        | {"acc1_last": network["acc1"]}
    )


def metric(heading: str, name: str, digits: int) -> Column:
    """Returns the column of a student's metric."""
    return Column(heading, lambda summary: student(summary).get(name), digits)


COLUMNS = (
    metric("acc@1 last %", "acc1_last", 2),
    metric("acc@1 best %", "acc1_best", 2),
    metric("agree@1 %", "agree1", 2),
    metric("loyalty", "loyalty", 4),
    metric("loyalty (released)", "loyalty_released", 4),
    metric("synthetic agree@1 %", "agree1_synthetic", 2),
    Column("stability mean %", lambda s: s.get("stability", {}).get("mean"), 2),
    Column("stability variance", lambda s: s.get("stability", {}).get("variance"), 2),
    Column("wall min", lambda s: s["wall_s"] / 60, 1),
    Column("images/s", lambda s: s["images_per_s"], 0),
    Column("peak memory MiB", lambda s: s["peak_memory_mib"]["device"] or s["peak_memory_mib"]["host"], 0),
)


def summaries(outcomes: Iterable[Outcome]) -> list[Summary]:
    """Returns the summaries of the finished runs."""
    return [outcome.summary for outcome in outcomes if outcome.summary]


def values(column: Column, outcomes: Iterable[Outcome]) -> list[float]:
    """Returns the column's value for each run that has one."""
    found = (column.value(summary) for summary in summaries(outcomes))
    return [value for value in found if value is not None]


def known(columns: Sequence[Column], outcomes: Sequence[Outcome]) -> list[Column]:
    """Returns the columns for which some run has a value."""
    return [column for column in columns if values(column, outcomes)]


def row(columns: Sequence[Column], outcomes: Sequence[Outcome]) -> list[str]:
    """Returns the number of finished runs, and the mean ± deviation of each column over them."""
    done = f"{len(summaries(outcomes))}/{len(outcomes)}"
    return [done, *(mean_and_deviation(values(column, outcomes), column.digits) for column in columns)]


def mean_and_deviation(numbers: Sequence[float], digits: int) -> str:
    """Formats "91.20 ± 0.35" (sample standard deviation), "91.20" for a single number, "" for none."""
    if not numbers:
        return ""
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):.{digits}f}"


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats a Markdown table."""
    lines = (heading, ["---"] * len(heading), *rows)
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def failures(outcomes: Iterable[Outcome]) -> str:
    """Returns a paragraph for each run without a summary."""
    return "".join(f"\n{o.cell.name} failed: {o.error}\n" for o in outcomes if not o.summary)


def csv_text(
    heading: Sequence[str], outcomes: Sequence[Outcome], keys: Sequence[Sequence[Any]], columns: Sequence[Column]
) -> str:
    """Returns one unrounded CSV line per run: its keys under `heading`, the columns, and the error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*heading, *(column.heading for column in columns), "error"])
    for outcome, key in zip(outcomes, keys, strict=True):
        numbers = [column.value(outcome.summary) if outcome.summary else None for column in columns]
        writer.writerow([*key, *numbers, outcome.error])
    return text.getvalue()


def about(summary: Summary) -> str:
    """Describes, in one line, the common properties of runs of one pair of networks, from one run's summary."""
    return f"{pair(summary)}, {summary['epochs']} epochs. {_NOTE} {machine(summary)}."


_NOTE = (
    "Mean ± standard deviation over seeds of the last students; best values are chosen on the test images, each "
    "by itself."
)


def pair(summary: Summary) -> str:
    """Describes the data and the networks of a distilled student."""
    teacher = summary["teacher"]
    accuracy = f" of {teacher['acc1']:.2f} %" if "acc1" in teacher else ""
    return f"{summary['dataset'] or 'no data'}: {teacher['arch']}{accuracy} → {summary['student']['arch']}"


def machine(summary: Summary) -> str:
    """Describes the devices and versions of a run."""
    devices = summary["devices"]
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return f"{devices['count']} × {devices['kind']}; {versions}"
