"""Distils within a time limit: measures the pace, shortens the run to fit, and runs it, in one process.

    python -m gpu.fitted --seconds=N [--epoch_s=S] --config=FILE --workdir=FOLDER [--config.KEY=VALUE]

`--epoch_s=` is the duration of an epoch if known; otherwise a few steps of each kind are timed.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cudfkd_jax.config import access, budget, jobs, loading
from cudfkd_jax.config.budget import Pace
from cudfkd_jax.runs import stages, timing
from cudfkd_jax.runtime import cli

_START_S = 25.0  # until the first step of a run with compiled programs
# The share of the time for steps; the rest is for evaluation, checkpoints, pictures and too short a measurement.
_FOR_STEPS = 0.88


def _run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--epoch_s", type=float)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    options, changes = parser.parse_known_args(arguments)
    begin = time.monotonic()
    cli.use_compilation_cache()
    config = loading.load(options.config)
    loading.override(config, changes)
    if options.epoch_s is None:
        pace = timing.distillation_pace(lambda: jobs.untrained_job(config), by_steps=True)
        spent = time.monotonic() - begin
    else:
        pace, spent = Pace(_START_S, options.epoch_s), 0.0
    share = budget.fit(config, _FOR_STEPS * (options.seconds - spent), pace)
    length = access.distill_epoch(config)
    print(
        f"{pace.epoch_s:.2f} s per epoch: {config.distill.epochs} epochs of {length.rounds} rounds of "
        f"{length.synthesis_steps} + {length.student_steps} steps, {share:.1%} of the configuration's",
        flush=True,
    )
    stages.run(config, "distill", options.workdir)


if __name__ == "__main__":
    sys.exit(cli.guard(_run, sys.argv[1:], __doc__ or ""))
