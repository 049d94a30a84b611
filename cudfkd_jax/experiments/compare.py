"""Comparison of methods with the same teacher, student, epochs and metrics over several seeds, in one table."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cudfkd_jax.config import access, identity, loading, validate
from cudfkd_jax.experiments import paper_numbers, plan
from cudfkd_jax.experiments.display import Cell
from cudfkd_jax.experiments.launcher import Outcome
from cudfkd_jax.experiments.outcomes import (
    COLUMNS,
    Summary,
    about,
    csv_text,
    failures,
    known,
    markdown,
    row,
    summaries,
)
from cudfkd_jax.experiments.plan import PlannedRun, RunSpec
from cudfkd_jax.methods import METHODS, find
from cudfkd_jax.runtime.cli import check_distinct
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import workdir
from cudfkd_jax.storage.files import write_bytes

TABLE = "table"


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
        methods: names or import paths; see `methods.find`.
        seeds: seeds of the students; the teacher takes the configuration's.
        folder: receives the teacher's run in `teacher/`, unless the configuration names a trained one, and the
            students' in `<method>/seed_<n>/`, under the name of the method. Finished runs are kept, others resume.
        overrides: `--config.key=value` for every run.
        jobs: number of concurrent runs.
        say: prints messages for the user.

    Returns:
        The outcomes, in the order of methods and seeds.

    Raises:
        UserError: an argument is wrong; raised before any run starts.
    """
    base = loading.load_checked(file, overrides)
    validate.check_one_process(base, "a comparison")
    validate.check_dtype_settled(base, "a comparison")
    own = ("method", "seed")
    given = [o for o in overrides if o.lstrip("-").removeprefix("config.").partition("=")[0] in own]
    if given or "method=" in file:
        raise UserError(f"{given[0] if given else file}: methods are given by --methods, seeds by --seeds")
    configs = {method: f"{file}{',' if ':' in file else ':'}method={method}" for method in methods}
    for named in configs.values():
        loading.load_checked(named, overrides)
    workdir.check_writable(folder)
    teacher = None
    if not access.gives_teacher(base):
        teacher = Cell(
            "teacher", folder / "teacher", (f"--config={file}", "--stage=teacher", *overrides), "teacher"
        )
        workdir.check_config(teacher.folder / teacher.part, identity.result_settings(base, "teacher"))
    same = [*overrides, f"--config.distill.epochs={base.distill.epochs}"]
    planned = [
        _planned(
            RunSpec(f"{find(method).name} seed {seed}", configs[method], tuple(same), seed),
            folder / find(method).name / f"seed_{seed}",
            teacher,
            base.teacher.checkpoint,
        )
        for method in methods
        for seed in seeds
    ]
    plan.check_surroundings(planned)
    with workdir.lock(folder):
        outcomes = plan.run(planned, jobs=jobs, say=say)
        write_table(folder, methods, outcomes)
    return outcomes


def _planned(wanted: RunSpec, folder: Path, teacher: Cell | None, checkpoint: str) -> PlannedRun:
    arguments = (
        f"--config={wanted.file}",
        "--stage=distill",
        *wanted.overrides,
        f"--config.teacher.checkpoint={teacher.folder if teacher else checkpoint}",
        f"--config.seed={wanted.seed}",
    )
    return PlannedRun(wanted, Cell(wanted.name, folder, arguments), teacher)


def write_table(folder: Path, methods: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """Writes `table.md` and `table.csv` and returns the former: per method, mean ± deviation over seeds."""
    columns = known(COLUMNS, outcomes)
    rows = []
    for method in (find(method).name for method in methods):
        of_method = [o for o in outcomes if o.cell.folder.parent.name == method]
        rows.append([method, *row(columns, of_method), *_of_the_paper(method, summaries(of_method))])
    heading = ["method", "runs", *(column.heading for column in columns), "paper's acc@1 %", "paper's stability"]
    note = "".join(f"{about(summary)}\n\n" for summary in summaries(outcomes)[:1])
    text = note + markdown(heading, rows) + failures(outcomes)
    keys = [(o.cell.folder.parent.name, o.cell.folder.name.removeprefix("seed_")) for o in outcomes]
    write_bytes(folder / f"{TABLE}.md", text.encode())
    write_bytes(folder / f"{TABLE}.csv", csv_text(["method", "seed"], outcomes, keys, COLUMNS).encode())
    return text


def parse_methods(text: str) -> tuple[str, ...]:
    """Parses `all`, or names and import paths of methods separated by commas.

    Raises:
        UserError: there is no name, or one is unknown or repeated.
    """
    names = tuple(METHODS) if text == "all" else tuple(text.split(","))
    check_distinct("--methods", tuple(find(name, "method in --methods", ("all",)).name for name in names))
    return names


def _of_the_paper(method: str, found: Sequence[Summary]) -> list[str]:
    if not found:
        return ["", ""]
    pair = found[0]["dataset"], found[0]["teacher"]["arch"], found[0]["student"]["arch"]
    acc1, stability = paper_numbers.acc1(*pair, method), paper_numbers.stability(*pair, method)
    return [f"{acc1:.2f}" if acc1 else "", f"{stability.mean} / {stability.variance}" if stability else ""]
