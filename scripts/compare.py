"""`cudfkd compare` of a checkout that is not installed; --help shows the options."""

from cudfkd_jax.experiments.commands import compare
from cudfkd_jax.runtime import cli

main = compare.main

if __name__ == "__main__":
    cli.leave(main)
