"""Distils one teacher with several methods and seeds, and writes a table like the paper's Tables II and V.

    python scripts/compare.py --config=configs/digits.py --methods=all --seeds=0,1,2 --workdir=runs/compare

`--methods=` all or names separated by commas, `--seeds=` of the students, `--jobs=` runs at a time (1), and
`--config.KEY=VALUE` for every run. All methods get as many epochs as the configuration has for CuDFKD; their other
settings are their own. The same command goes on where it stopped: finished runs are kept. The table is in
WORKDIR/table.md and, unrounded, table.csv; the output of each run beside its folder.
"""

from collections.abc import Sequence
from pathlib import Path

from cudfkd_jax import cli, compare
from cudfkd_jax.errors import RunFailedError, UserError


def main(arguments: Sequence[str]) -> int:
    """Does what the arguments say and returns the exit status."""
    return cli.guard(_run, arguments, __doc__ or "")


def _run(arguments: Sequence[str]) -> None:
    parser = cli.Parser()
    for option in ("config", "methods", "seeds", "workdir"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--jobs", type=int, default=1)
    options, overrides = parser.parse_known_args(arguments)
    if options.jobs < 1:
        raise UserError(f"--jobs={options.jobs} must be at least 1")
    cli.use_compilation_cache()
    outcomes = compare.compare(
        options.config,
        compare.parse_methods(options.methods),
        compare.parse_seeds(options.seeds),
        Path(options.workdir).expanduser(),
        overrides,
        jobs=options.jobs,
    )
    print((Path(options.workdir).expanduser() / f"{compare.TABLE}.md").read_text(encoding="utf-8"))
    failed = sum(outcome.summary is None for outcome in outcomes)
    if failed:
        raise RunFailedError(f"{failed} of {len(outcomes)} runs failed; the same command tries them again")


if __name__ == "__main__":
    cli.leave(main)
