"""Rates that this machine reaches on the two simplest programs: a matrix product and a sum of long vectors."""

import functools
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cudfkd_jax.runs.timing import timed

_SIZES = {"cpu": (2048, 1 << 26)}  # matrix rows; vector length, a quarter of a gigabyte
_SIZES_ELSEWHERE = (8192, 1 << 28)
_REPEATS = 5


class Ceilings(NamedTuple):
    """The peak rates of one device.

    Attributes:
        flops: operations per second by dtype, in products at JAX's default precision (on NVIDIA GPUs, TF32 for
            float32, as in convolutions).
        stream: bytes per second of a + b, two thirds of them reads.
    """

    flops: dict[str, float]
    stream: float


@functools.cache
def measured(device: jax.Device, dtypes: tuple[str, ...]) -> Ceilings:
    """Measures the medians of a few repeats, which take seconds; on GPUs also for bfloat16."""
    size, length = _SIZES.get(device.platform, _SIZES_ELSEWHERE)
    dtypes = dtypes if device.platform == "cpu" else (*dtypes, "bfloat16")
    return Ceilings(
        {dtype: product_rate(device, dtype, size) for dtype in dict.fromkeys(dtypes)}, stream_rate(device, length)
    )


def product_rate(device: jax.Device, dtype: str, size: int) -> float:
    """Measures the operations per second in products of square matrices of this size."""
    matrix = jax.device_put(jnp.full((size, size), 0.5, dtype), device)
    product = jax.jit(jnp.dot)
    return 2 * size**3 / _median_seconds(lambda: product(matrix, matrix))


def stream_rate(device: jax.Device, length: int) -> float:
    """Measures the bytes per second of a + b on float32 vectors of this length; the sum overwrites a."""
    a, b = (jax.device_put(jnp.full(length, value), device) for value in (0.5, 1.0))
    add = jax.jit(jnp.add, donate_argnums=0)

    def work() -> jax.Array:
        nonlocal a
        a = add(a, b)
        return a

    return 3 * a.nbytes / _median_seconds(work)


def _median_seconds(work) -> float:
    timed(work)  # compiles
    return statistics.median(timed(work)[1] for _ in range(_REPEATS))
