"""Batch statistics and batch normalisation of maps on CPUs.

XLA's CPU backend compiles a sum over all pixels to scalar loops, some 10 ns per element, and likewise the sums in
the gradients of BatchNorm. Here the maps are split into parts that are added to each other, a vectorised loop over
contiguous memory: thirty times as fast. Sums and statistics are float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from cudfkd_jax.runtime import onednn

_PARTS = 16  # added at a time
_MOST_ROWS = 2**28  # of a product; from 2^32 on XLA's compiler divides by zero instead of running out of memory
_ROWS = 8  # of ones that sum the remainder: a single row would compile to a loop, not to a library's product


def in_use(dtype: jax.typing.DTypeLike) -> bool:
    """Returns whether this module, not flax, computes statistics of maps of this dtype.

    It does in float32 from jaxlib 0.11 on: earlier versions sum fast enough, and float64 serves bitwise tests.
    """
    if jnp.dtype(dtype) == jnp.float32:
        return jax.default_backend() == "cpu" and jax.__version_info__ >= (0, 11)
    return onednn.in_use(dtype)


def column_sums(term: Callable[..., Array], *maps: Array) -> Array:
    """Computes Σ term(*maps) over all axes but the last, in float32.

    Args:
        term: an elementwise function of equally shaped float32 arrays.
        maps: `[..., C]`, all of one shape.

    Returns:
        `[C]`.
    """
    rows = [m.reshape(-1, m.shape[-1]) for m in maps]
    length, rest = divmod(rows[0].shape[0], _PARTS)

    def terms(start: int, stop: int) -> Array:
        return term(*(r[start:stop].astype(jnp.float32) for r in rows))

    total = jnp.zeros(rows[0].shape[1:])
    if length >= _MOST_ROWS:
        return jnp.sum(terms(0, rows[0].shape[0]), axis=0)
    if length:
        parts = functools.reduce(jnp.add, (terms(i * length, (i + 1) * length) for i in range(_PARTS)))
        total = jnp.dot(jnp.ones((_ROWS, length)), parts, precision=jax.lax.Precision.HIGHEST)[0]
    return total + jnp.sum(terms(_PARTS * length, _PARTS * length + rest), axis=0) if rest else total


# Traced once per shape; many layers have the same, and every network is traced several times.
_inlined = functools.partial(jax.jit, inline=True)


@jax.custom_vjp
@_inlined
def moments(x: Array) -> tuple[Array, Array]:
    """Computes mean and biased variance over all axes but the last: `[..., C]` -> `[C]`, `[C]`, float32."""
    count = float(x.size // x.shape[-1])  # float: XLA, not int32, is to reject sizes beyond any memory
    mean = column_sums(lambda v: v, x) / count
    # Two passes: exact where the mean is large.
    return mean, column_sums(lambda v: jnp.square(v - mean), x) / count


def _moments_forward(x: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    mean, var = moments(x)
    return (mean, var), (x, mean)


def _moments_backward(residuals: tuple[Array, Array], gradients: tuple[Array, Array]) -> tuple[Array]:
    x, mean = residuals
    by_mean, by_var = (g * (x.shape[-1] / x.size) for g in gradients)
    return ((by_mean + 2 * by_var * (x.astype(jnp.float32) - mean)).astype(x.dtype),)


moments.defvjp(_moments_forward, _moments_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """Computes BatchNorm in training mode.

    Args:
        x: `[..., C]`.
        scale, bias: `[C]`.
        epsilon: added to the variance.

    Returns:
        `scale · (x − μ) / √(σ² + epsilon) + bias` as float32, and the batch's μ and σ², `[C]`, float32, for the
        running statistics; no gradient flows through these two.
    """
    mean, var = moments(x)
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return (x.astype(jnp.float32) - mean) * factor + bias, mean, var


def _normalise_forward(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array, Array]]:
    y, mean, var = normalise(x, scale, bias, epsilon)
    return (y, mean, var), (x, scale, mean, jax.lax.rsqrt(var + epsilon))


def _normalise_backward(
    epsilon: float, residuals: tuple[Array, Array, Array, Array], gradients: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    del epsilon
    return _by_input_scale_bias(*residuals, gradients[0])


@_inlined
def _by_input_scale_bias(
    x: Array, scale: Array, mean: Array, inverse: Array, g: Array
) -> tuple[Array, Array, Array]:
    by_bias = column_sums(lambda v: v, g)
    by_scale = column_sums(lambda v, w: v * ((w - mean) * inverse), g, x)
    normalised = (x.astype(jnp.float32) - mean) * inverse
    share = x.shape[-1] / x.size
    by_x = scale * inverse * (g - share * (by_bias + normalised * by_scale))
    return by_x.astype(x.dtype), by_scale, by_bias


normalise.defvjp(_normalise_forward, _normalise_backward)
