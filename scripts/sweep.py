"""`cudfkd sweep` of a checkout that is not installed; --help shows the options."""

from cudfkd_jax.experiments.commands import sweep
from cudfkd_jax.runtime import cli

main = sweep.main

if __name__ == "__main__":
    cli.leave(main)
