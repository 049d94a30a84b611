"""Copies the results of a workdir's completed runs, without checkpoints and machine-specific paths.

    python scripts/record.py runs/reproduce-cifar10_cpu results/cifar10_compare

The first folder is a workdir of scripts/reproduce.py. The second receives the summary, metrics, settings and last
observation of each completed run, the network of each teacher, and the pages and pictures of each table and
figure; table2 becomes table.md. Runs already in the second folder are unchanged. scripts/reproduce.py
--scale=cifar10_cpu counts the runs in results/cifar10_compare as completed.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cudfkd_jax.evaluation import observations
from cudfkd_jax.evaluation.summary import SUMMARY
from cudfkd_jax.experiments.reproduce import catalogue
from cudfkd_jax.runs.supervised import NET
from cudfkd_jax.runtime import cli
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import workdir
from cudfkd_jax.storage.files import write_bytes, write_json
from cudfkd_jax.training import trainer

_PAGES = (".md", ".csv", ".png")
_AT_THE_TOP = {"table2": "table"}


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    return cli.guard(_run, arguments, __doc__ or "")


def record(source: Path, target: Path) -> list[Path]:
    """Copies the runs that `target` lacks, and all pages; returns the new runs, relative to `target`.

    Raises:
        UserError: `source` contains no completed runs.
    """
    stages = sorted(_finished(source))
    if not stages:
        raise UserError(f"{source} contains no completed run; expected a workdir of scripts/reproduce.py")
    new = [stage for stage in stages if not (target / stage / SUMMARY).exists()]
    for stage in new:
        _copy_run(source / stage, target / stage)
    for entry in catalogue.ENTRIES:
        name = _AT_THE_TOP.get(entry, entry)
        for path in (source / entry).glob("*"):
            if path.suffix in _PAGES:
                place = target / (name if name == entry else "") / path.name.replace(entry, name, 1)
                write_bytes(place, path.read_bytes())
    return new


def _finished(source: Path) -> Iterator[Path]:
    for pattern in ("cells/*", "cells/*/*", "teachers/*/*"):
        for path in source.glob(f"{pattern}/{SUMMARY}"):
            yield path.parent.relative_to(source)


def _copy_run(source: Path, target: Path) -> None:
    write_bytes(target / trainer.METRICS, (source / trainer.METRICS).read_bytes())
    held = json.loads((source / workdir.CONFIG).read_text(encoding="utf-8"))
    teacher = Path(held["config"]["teacher.checkpoint"])
    own = {"data.dir": "", "teacher.checkpoint": f"teachers/{teacher.name}" if teacher.name else ""}
    write_json(target / workdir.CONFIG, {**held, "config": {**held["config"], **own}})
    for path in sorted((source / observations.FOLDER).glob("epoch_*.json"))[-1:]:
        write_bytes(target / observations.FOLDER / path.name, path.read_bytes())
    if source.parent.parent.name == "teachers":
        shutil.copytree(source / NET, target / NET, dirs_exist_ok=True)
    write_bytes(target / SUMMARY, (source / SUMMARY).read_bytes())  # last, because it marks the run as completed


def _run(arguments: Sequence[str]) -> None:
    parser = cli.Parser()
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    workdir.check_writable(options.target)
    for stage in record(options.source, options.target):
        cli.say(f"recorded: {stage}")


if __name__ == "__main__":
    cli.leave(main)
