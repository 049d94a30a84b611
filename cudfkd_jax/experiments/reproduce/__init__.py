"""Reproduction of the paper's tables and figures, with its numbers beside ours."""

from cudfkd_jax.experiments.reproduce.run import reproduce

__all__ = ["reproduce"]
