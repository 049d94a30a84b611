"""`python -m cudfkd_jax`: the command line of `main.py`."""

from cudfkd_jax.main import console

if __name__ == "__main__":
    console()
