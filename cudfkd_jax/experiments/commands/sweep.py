"""Distils with every combination of setting values and seeds, and writes a
table, a CSV file and a picture.

    cudfkd sweep --config=digits --set curriculum.lambda_0=2,2.2,2.5,2.8

--config=NAME          a configuration, as for `cudfkd`
--set KEY=VALUE,VALUE  the values of a setting; repeat for further settings
--seeds=N,N            the students' seeds (0)
--workdir=FOLDER       runs/sweep-… by default
--jobs=N               parallel runs (1)
--config.KEY=VALUE     a setting of all runs

All runs share one teacher, unless the sweep varies settings of its training or
of the data. Rerun the same command to resume; completed runs are kept. The
results are WORKDIR/sweep.md with mean ± deviation over seeds, sweep.csv with
one unrounded line per run, and for one or two settings sweep.png and sweep.svg.
"""

from collections.abc import Sequence
from pathlib import Path

from cudfkd_jax.experiments import launcher, sweep
from cudfkd_jax.runtime import cli


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    cli.keep_devices_free()
    return cli.guard(_run, arguments, __doc__ or "")


def _run(arguments: Sequence[str]) -> None:
    parser = cli.Parser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--workdir")
    parser.add_argument("--jobs", default="1")
    options, overrides = parser.parse_known_args(arguments)
    axes = [sweep.parse_axis(text) for text in options.set]
    seeds, jobs = cli.parse_seeds(options.seeds), cli.parse_jobs(options.jobs)
    folder = Path(options.workdir or sweep.default_workdir(options.config, axes, overrides)).expanduser()
    outcomes = sweep.sweep(options.config, axes, seeds, folder, overrides, jobs=jobs, say=cli.say)
    print((folder / f"{sweep.NAME}.md").read_text(encoding="utf-8") + f"written: {folder}/{sweep.NAME}.md, .csv")
    launcher.check_finished(outcomes)
