"""A run started by another command, which stops as on SIGTERM when that command ends.

    python -m cudfkd_jax.experiments.child --config=FILE --stage=STAGE [--config.KEY=VALUE] --workdir=FOLDER

Standard input is a pipe whose other end only that command holds, so that it closes when the command ends, even
by SIGKILL.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from cudfkd_jax.config import loading
from cudfkd_jax.runs import stages
from cudfkd_jax.runtime import allocator, cli


def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns its exit status; see `cli.guard`."""
    return cli.guard(_run, arguments, __doc__ or "")


def _run(arguments: Sequence[str]) -> None:
    parser = cli.Parser()
    for name in ("--config", "--stage", "--workdir"):
        parser.add_argument(name, required=True)
    options, overrides = parser.parse_known_args(arguments)
    cli.use_compilation_cache()
    allocator.keep_freed_memory()
    config = loading.load(options.config)
    loading.override(config, overrides)
    stages.run(config, options.stage, Path(options.workdir))


def stop_at_end_of(descriptor: int) -> None:
    """Sends this process SIGTERM at the end of a file descriptor; returns immediately."""
    threading.Thread(target=_wait_for_end, args=(descriptor,), daemon=True).start()


def _wait_for_end(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    stop_at_end_of(sys.stdin.fileno())
    cli.leave(main)
