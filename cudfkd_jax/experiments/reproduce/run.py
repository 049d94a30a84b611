"""The paper's tables and figures, one command each: plans and executes their runs and writes the results.

A workdir contains runs in `cells/<hash of the settings that affect the results>/` and teachers in
`teachers/<hash>/`, so that entries share them. Each entry has a separate folder with `<entry>.md`, `<entry>.csv`
and its pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cudfkd_jax.evaluation.summary import DAMAGED
from cudfkd_jax.experiments import plan
from cudfkd_jax.experiments.display import Durations
from cudfkd_jax.experiments.launcher import finished
from cudfkd_jax.experiments.reproduce import catalogue, estimate, page
from cudfkd_jax.experiments.reproduce.entry import with_method
from cudfkd_jax.experiments.reproduce.jobs import Job, Result, all_runs, changes_text, count, prepare
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage.files import read_object, write_json
from cudfkd_jax.storage.workdir import check_writable
from cudfkd_jax.training.progress import duration

_STATE = "reproduce.json"  # names the scale of a workdir


def reproduce(
    names: Sequence[str],
    scale: str,
    folder: Path,
    configs: Path,
    overrides: Sequence[str] = (),
    *,
    jobs: int = 1,
    method: str = "",
    recorded: Path | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Executes the runs of tables and figures and writes their pages; finished runs are kept.

    Args:
        names: names from `catalogue.ENTRIES`, or "all".
        scale: one of `entry.SCALES`.
        folder: the workdir, of one scale.
        configs: the folder of the configuration files.
        overrides: `--config.key=value` for every run.
        jobs: number of concurrent runs.
        method: name or import path of a method that each entry gets as another row; "": none.
        recorded: outcomes of earlier runs; see `jobs.prepare`.
        dry_run: shows the runs and the estimate without starting or writing anything.
        say: prints messages for the user.

    Returns:
        The result of each run of each entry; empty for a dry run.

    Raises:
        UserError: an argument is wrong; raised before anything is started or written.
    """
    entries = catalogue.select(names, scale)
    if method:
        entries = [with_method(entry, scale, method) for entry in entries]
    check_writable(folder)
    _check_scale(folder, scale)
    todo = prepare(entries, scale, folder, configs, overrides, recorded)
    for job in todo:
        say(_described(job, overrides))
    if overrides:
        say(f"all of them with {' '.join(overrides)}\n")
    runs = all_runs(todo)
    plan.check_surroundings(runs)
    estimates = estimate.estimate(estimate.parts(runs), say)
    _say_estimate(todo, estimates, say)
    if dry_run:
        say("nothing was started or written; leave out --dry-run to start")
        return []
    write_json(folder / _STATE, {"scale": scale})
    outcomes: list[tuple[Job, list[Result]]] = []
    lost: dict[Path, str] = {}
    durations = Durations(estimates)
    for number, job in enumerate(todo):
        say(f"\n{job.entry.name}: {job.entry.title}")
        found = plan.run(job.planned, jobs=jobs, say=say, lost=lost, durations=durations)
        results = [Result(run, outcome) for run, outcome in zip(job.setting.runs, found, strict=True)]
        outcomes.append((job, results))
        say(f"written: {page.write(job, scale, results, folder / job.entry.name)}")
        _say_left(todo[number + 1 :], durations, jobs, lost, say)
    if len(outcomes) > 1:
        index = page.write_index([(job.entry, results) for job, results in outcomes], scale, folder)
        say(f"written: {index}")
    return [result for _, results in outcomes for result in results]


def _say_left(
    coming: Sequence[Job], durations: Durations, jobs: int, lost: Mapping[Path, str], say: Callable[[str], None]
) -> None:
    waiting = [each.cell for each in all_runs(coming) if not finished(each.cell) and each.cell.folder not in lost]
    left = durations.left({}, waiting, jobs) if waiting else None
    if left is not None:
        say(f"{len(waiting)} runs of the other entries: about {duration(left)}")


def _check_scale(folder: Path, scale: str) -> None:
    path = folder / _STATE
    if not path.exists():
        return
    held = read_object(path, DAMAGED).get("scale")
    if held != scale:
        raise UserError(f"--workdir={folder} holds --scale={held}; name another one for {scale}")


def _described(job: Job, overrides: Sequence[str]) -> str:
    """Describes the runs of an entry for the user."""
    total, done = count(job.planned)
    runs = f"{total} run{'s' * (total > 1)}, {done} finished"
    lines = [f"{job.entry.name}: {job.entry.title} ({runs})"]
    for run, planned in zip(job.setting.runs, job.planned, strict=True):
        state = "finished" if finished(planned.cell) else ""
        changes = " ".join(changes_text(run.changes, overrides)).replace("--config.", "")
        lines.append(f"  {run.name:55} {changes:45} {state}".rstrip())
    lines += [f"  * {text}" for text in (*job.setting.choices, job.setting.too_small) if text]
    return "\n".join(lines) + "\n"


def _say_estimate(jobs: Sequence[Job], seconds: dict[Path, float], say: Callable[[str], None]) -> None:
    waiting = sum(not finished(each.cell) for each in all_runs(jobs))
    if not waiting:
        return
    counted: set[Path] = set()
    lines = []
    for job in jobs:
        new = {cell.folder for each in job.planned for cell in (each.cell, each.teacher) if cell} - counted
        counted |= new
        lines.append(f"  {job.entry.name:8}{duration(sum(seconds.get(folder, 0.0) for folder in new)):>14}")
    say("\n".join(lines))
    shared = "; what entries share is counted with the first of them" if len(jobs) > 1 else ""
    say(
        f"estimate: {duration(sum(seconds.values()))} for {waiting} run{'s' * (waiting > 1)} and the missing "
        f"teachers, one at a time{shared}"
    )
