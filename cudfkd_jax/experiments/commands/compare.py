"""Distils one teacher with several methods and seeds, and writes a table like
the paper's Tables II and V.

    cudfkd compare --config=digits --methods=all --seeds=0,1,2 \\
        --workdir=runs/compare

--config=NAME       a configuration, as for `cudfkd`
--methods=NAMES     all, or names separated by commas
--seeds=N,N         the students' seeds
--workdir=FOLDER    the results
--jobs=N            parallel runs (1)
--config.KEY=VALUE  a setting of all runs

All methods train for the number of epochs that the configuration sets for
CuDFKD; other settings are specific to the method. Rerun the same command to
resume; completed runs are kept. The results are WORKDIR/table.md and, without
rounding, table.csv; the output of each run is next to its folder.
"""

from collections.abc import Sequence
from pathlib import Path

from cudfkd_jax.experiments import compare, launcher
from cudfkd_jax.runtime import cli


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    cli.keep_devices_free()
    return cli.guard(_run, arguments, __doc__ or "")


def _run(arguments: Sequence[str]) -> None:
    parser = cli.Parser()
    for option in ("config", "methods", "seeds", "workdir"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--jobs", default="1")
    options, overrides = parser.parse_known_args(arguments)
    folder = Path(options.workdir).expanduser()
    outcomes = compare.compare(
        options.config,
        compare.parse_methods(options.methods),
        cli.parse_seeds(options.seeds),
        folder,
        overrides,
        jobs=cli.parse_jobs(options.jobs),
        say=cli.say,
    )
    print((folder / f"{compare.TABLE}.md").read_text(encoding="utf-8"))
    launcher.check_finished(outcomes)
