"""Compiles the programs of a later run, so that several programs compile in parallel.

    python -m gpu.ahead (ours|peer) --config=FILE [--config.KEY=VALUE]

"ours" compiles the steps, a round and an epoch of a distillation; "peer" compiles the same round in PyTorch. The
programs go to the caches named in the environment.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from benchmarking import peers
from cudfkd_jax.config import jobs, loading
from cudfkd_jax.runs import timing
from cudfkd_jax.runs.timing import Setup
from cudfkd_jax.runtime import cli


def ours(setup: Setup) -> None:
    """Compiles each step, a round and an epoch, with the benchmark's and a run's calls."""
    steps: Any = setup.parts.compile(setup.devices)
    for step in steps[:4]:
        if step:
            step.lower(setup.state, *setup.frozen).compile()
    if setup.loop == "scan":
        for rounds in (1, setup.epoch.rounds):
            whole: Any = setup.scan(rounds).whole
            whole.lower(setup.state, *setup.frozen).compile()


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    what, file, *changes = arguments
    config = loading.load(file.removeprefix("--config="))
    loading.override(config, changes)
    cli.use_compilation_cache()
    begin = time.monotonic()
    setup = timing.set_up(jobs.untrained_job(config))
    if what == "ours":
        ours(setup)
    else:
        state = jax.device_put(setup.state, jax.devices()[0])
        for name, peer in peers.torch_peers(config, setup.frozen[0], state).rounds.items():
            if "compiled" in name:
                peer.run()
    print(f"compiled in {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
