"""Methods side by side: the same teacher, student, epochs and metrics, several seeds, one table."""

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cudfkd_jax import paper, stages, validate, workdir
from cudfkd_jax.cells import Cell, Outcome, run_cells
from cudfkd_jax.errors import UserError
from cudfkd_jax.files import write_bytes
from cudfkd_jax.methods import METHODS
from cudfkd_jax.settings import load, override

TABLE = "table"


class Column(NamedTuple):
    """A column of the table: its heading, the number of a summary, and digits after the point."""

    heading: str
    value: Callable[[dict[str, Any]], float | None]
    digits: int


COLUMNS = (
    Column("acc@1 last %", lambda s: s["student"].get("acc1_last"), 2),
    Column("acc@1 best %", lambda s: s["student"].get("acc1_best"), 2),
    Column("agree@1 %", lambda s: s["student"].get("agree1"), 2),
    Column("loyalty", lambda s: s["student"].get("loyalty"), 4),
    Column("loyalty (released)", lambda s: s["student"].get("loyalty_released"), 4),
    Column("stability mean %", lambda s: s["stability"]["mean"], 2),
    Column("stability variance", lambda s: s["stability"]["variance"], 2),
    Column("wall min", lambda s: s["wall_s"] / 60, 1),
    Column("images/s", lambda s: s["images_per_s"], 0),
    Column("peak memory MiB", lambda s: s["peak_memory_mib"]["device"] or s["peak_memory_mib"]["host"], 0),
)


def compare(
    file: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Distils one teacher with each method and seed, and writes `table.md` and `table.csv`.

    Args:
        file: a configuration file, with arguments after a colon but without `method=`.
        methods: of `METHODS`.
        seeds: of the students; the teacher's is the configuration's.
        folder: `teacher/` is the run of the teacher unless the configuration names a trained one,
            `<method>/seed_<n>/` those of the students. Finished runs are kept, others gone on with.
        overrides: `--config.key=value` for every run.
        jobs: runs at a time.
        say: told what a user should read.

    Returns:
        What the runs came to, in the order of methods and seeds.

    Raises:
        UserError: before anything is begun.
    """
    base = _checked(file, overrides)
    validate.check_one_process(base, "a comparison")
    own = ("method", "seed")
    given = [o for o in overrides if o.lstrip("-").removeprefix("config.").partition("=")[0] in own]
    if given or "method=" in file:
        raise UserError(f"{given[0] if given else file}: methods are given by --methods, seeds by --seeds")
    configs = {method: _with_method(file, method) for method in methods}
    for named in configs.values():
        _checked(named, overrides)
    workdir.check_writable(folder)
    same = [*overrides, f"--config.distill.epochs={base.distill.epochs}"]
    teacher = base.teacher.checkpoint or str(folder / "teacher")
    if not base.teacher.checkpoint:
        stages.run(base, "teacher", folder / "teacher", say)
    cells = [
        Cell(
            f"{method} seed {seed}",
            folder / method / f"seed_{seed}",
            (
                f"--config={configs[method]}",
                "--stage=distill",
                *same,
                f"--config.teacher.checkpoint={teacher}",
                f"--config.seed={seed}",
            ),
        )
        for method in methods
        for seed in seeds
    ]
    outcomes = run_cells(cells, jobs=jobs, say=say)
    write_table(folder, methods, outcomes)
    return outcomes


def write_table(folder: Path, methods: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """Writes `table.md` and `table.csv` and returns the first: a line a method, mean ± deviation over seeds."""
    rows = [_row(method, [o for o in outcomes if o.cell.folder.parent.name == method]) for method in methods]
    summaries = [o.summary for o in outcomes if o.summary]
    heading = ["method", "runs", *(column.heading for column in COLUMNS), "paper's acc@1 %", "paper's stability"]
    lines = [" | ".join(line) for line in (heading, ["---"] * len(heading), *rows)]
    notes = [f"{_about(summaries[0])}\n\n"] if summaries else []
    failures = "".join(f"\n{o.cell.name} failed: {o.error}\n" for o in outcomes if not o.summary)
    text = "".join(notes) + "".join(f"| {line} |\n" for line in lines) + failures
    write_bytes(folder / f"{TABLE}.md", text.encode())
    write_bytes(folder / f"{TABLE}.csv", _csv(outcomes).encode())
    return text


def parse_methods(text: str) -> tuple[str, ...]:
    """`all`, or names separated by commas.

    Raises:
        UserError: a name is unknown, none is given or one twice.
    """
    names = METHODS if text == "all" else tuple(text.split(","))
    for name in names:
        if name not in METHODS:
            raise UserError(f"unknown method {name!r} in --methods; valid: all, {', '.join(METHODS)}")
    return _distinct("--methods", names)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Numbers separated by commas.

    Raises:
        UserError: something else is given, or one twice.
    """
    try:
        seeds = tuple(int(seed) for seed in text.split(","))
    except ValueError as error:
        raise UserError(f"--seeds={text} must be whole numbers separated by commas, such as 0,1,2") from error
    if min(seeds) < 0:
        raise UserError(f"--seeds={text} must not be negative")
    return _distinct("--seeds", seeds)


def _distinct(option: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise UserError(f"{option} names {next(v for v in values if values.count(v) > 1)} twice; name it once")
    return values


def _with_method(file: str, method: str) -> str:
    return f"{file}{',' if ':' in file else ':'}method={method}"


def _checked(file: str, overrides: Sequence[str]) -> ConfigDict:
    config = load(file)
    override(config, overrides)
    validate.check(config)
    return config


def _row(method: str, outcomes: Sequence[Outcome]) -> list[str]:
    summaries = [outcome.summary for outcome in outcomes if outcome.summary]
    cells = [_mean_and_deviation([column.value(s) for s in summaries], column.digits) for column in COLUMNS]
    return [method, f"{len(summaries)}/{len(outcomes)}", *cells, *_of_the_paper(method, summaries)]


def _mean_and_deviation(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def _of_the_paper(method: str, summaries: Sequence[dict[str, Any]]) -> list[str]:
    if not summaries:
        return ["", ""]
    pair = summaries[0]["dataset"], summaries[0]["teacher"]["arch"], summaries[0]["student"]["arch"]
    acc1 = paper.acc1(*pair, method)
    known = pair == ("cifar10", "resnet34", "resnet18") and method in paper.STABILITY
    stability = "{} / {}".format(*paper.STABILITY[method]) if known else ""
    return [f"{acc1:.2f}" if acc1 else "", stability]


def _about(summary: dict[str, Any]) -> str:
    teacher, devices = summary["teacher"], summary["devices"]
    accuracy = f" of {teacher['acc1']:.2f} %" if "acc1" in teacher else ""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return (
        f"{summary['dataset']}: {teacher['arch']}{accuracy} → {summary['student']['arch']}, {summary['epochs']} "
        f"epochs. Mean ± standard deviation over seeds of the last students; best values are chosen on the test "
        f"images. {devices['count']} × {devices['kind']}; {versions}."
    )


def _csv(outcomes: Sequence[Outcome]) -> str:
    """A line a run, nothing rounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "seed", *(column.heading for column in COLUMNS), "error"])
    for outcome in outcomes:
        summary = outcome.summary
        values = [column.value(summary) for column in COLUMNS] if summary else [None] * len(COLUMNS)
        folder = outcome.cell.folder
        writer.writerow([folder.parent.name, folder.name.removeprefix("seed_"), *values, outcome.error])
    return text.getvalue()
