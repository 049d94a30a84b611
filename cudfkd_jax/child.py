"""A run that another command began: `main`, stopped like by SIGTERM when that command is gone.

    python -m cudfkd_jax.child …    the arguments of `cudfkd_jax.main`

Standard input is a pipe whose other end the command holds and nobody else, so that it ends with the command
however that ends, SIGKILL among the ways.
"""

import os
import signal
import sys
import threading

from cudfkd_jax import cli, main


def stop_at_end_of(descriptor: int) -> None:
    """Sends this process SIGTERM when all is read from a file descriptor; returns at once."""
    threading.Thread(target=_wait_for_end, args=(descriptor,), daemon=True).start()


def _wait_for_end(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    stop_at_end_of(sys.stdin.fileno())
    cli.leave(main.main)
