"""Reproduces the tables and figures of the paper, with the paper's numbers
next to ours.

    cudfkd reproduce --list
    cudfkd reproduce fig6 --scale=digits --workdir=runs/reproduce
    cudfkd reproduce all --scale=digits

The arguments are names of tables and figures, or `all`.

--list              lists the names
--scale=SCALE       digits (CPU minutes; the default), cifar10_cpu (CPU hours),
                    or the paper's settings: cifar10, cifar100, tiny_imagenet
--workdir=FOLDER    runs/reproduce-<scale> by default
--jobs=N            parallel runs (1)
--method=METHOD     a method, by name or import path, that each table gets as
                    another row
--dry-run           only shows the runs, with a time estimated from a measured
                    round
--config.KEY=VALUE  a setting of all runs, such as --config.data.dir

Runs that several entries share are executed once. Rerun the same command to
resume. What is recorded of cifar10_cpu in results/ counts as completed. Each
entry is written to WORKDIR/<entry>/. docs/reproducing.md describes the entries
and their durations.
"""

from collections.abc import Sequence
from pathlib import Path

from cudfkd_jax.config import files
from cudfkd_jax.experiments.reproduce import catalogue, reproduce
from cudfkd_jax.runtime import cli
from cudfkd_jax.runtime.errors import RunFailedError

# The results of earlier runs; only a checkout has them.
_RECORDED = {"cifar10_cpu": files.FOLDER.parent / "results/cifar10_compare"}


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    cli.keep_devices_free()
    return cli.guard(_run, arguments, __doc__ or "")


def _run(arguments: Sequence[str]) -> None:
    parser = cli.Parser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--scale", default="digits")
    parser.add_argument("--workdir")
    parser.add_argument("--jobs", default="1")
    parser.add_argument("--method", default="")
    parser.add_argument("--dry-run", action="store_true")
    options, overrides = parser.parse_known_args(arguments)
    if options.list:
        print(catalogue.listing())
        return
    folder = Path(options.workdir or f"runs/reproduce-{options.scale}").expanduser()
    jobs = cli.parse_jobs(options.jobs)
    results = reproduce(
        *(options.names, options.scale, folder, files.FOLDER, overrides),
        jobs=jobs,
        method=options.method,
        recorded=_RECORDED.get(options.scale),
        dry_run=options.dry_run,
        say=cli.say,
    )
    failed = {result.outcome.cell.folder for result in results if result.outcome.summary is None}
    if failed:
        raise RunFailedError(f"{len(failed)} runs failed; rerun the same command to retry them")
