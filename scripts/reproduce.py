"""Makes the tables and figures of the paper again, each with the paper's numbers beside ours.

    python scripts/reproduce.py --list
    python scripts/reproduce.py fig6 --scale=digits --workdir=runs/reproduce
    python scripts/reproduce.py all --scale=digits

Names of tables and figures, or `all`; `--scale=` digits (CPU minutes; the default), cifar10_cpu (CPU hours),
cifar10, cifar100 or tiny_imagenet (the paper's own settings), `--workdir=` (runs/reproduce-<scale>), `--jobs=`
runs at a time (1), `--method=` the name or import path of a method that each table gets as another row, and
`--config.KEY=VALUE` for every run, such as --config.data.dir. The runs are shown first,
with an estimate of the time from a measured round; with `--dry-run` that is all. What two entries need is run
once; rerun the same command to resume. Runs of cifar10_cpu that results/ holds count as finished. Each
entry is written to WORKDIR/<entry>/. docs/reproducing.md says what they hold and how long they take.
"""

from collections.abc import Sequence
from pathlib import Path

from cudfkd_jax.experiments.reproduce import catalogue, reproduce
from cudfkd_jax.runtime import cli
from cudfkd_jax.runtime.errors import RunFailedError, UserError

_ROOT = Path(__file__).resolve().parents[1]
_CONFIGS = _ROOT / "configs"
_RECORDED = {"cifar10_cpu": _ROOT / "results/cifar10_compare"}  # outcomes of earlier runs


def main(arguments: Sequence[str]) -> int:
    """Does what the arguments say and returns the exit status."""
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
    if options.workdir == "":
        raise UserError("--workdir= names no folder; leave it out or name one")
    folder = Path(options.workdir or f"runs/reproduce-{options.scale}").expanduser()
    jobs = cli.parse_jobs(options.jobs)
    results = reproduce(
        *(options.names, options.scale, folder, _CONFIGS, overrides),
        jobs=jobs,
        method=options.method,
        recorded=_RECORDED.get(options.scale),
        dry_run=options.dry_run,
        say=cli.say,
    )
    failed = {result.outcome.cell.folder for result in results if result.outcome.summary is None}
    if failed:
        raise RunFailedError(f"{len(failed)} runs failed; the same command tries them again")


if __name__ == "__main__":
    cli.keep_devices_free()
    cli.leave(main)
