"""Shared building blocks: PyTorch's padding and BatchNorm constants, initialisers, pooling, output dtype.

Submodules carry PyTorch's dotted names: a parameter's path joined by dots is its PyTorch name, except the leaf.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

from cudfkd_jax.models.convolution import conv_general_dilated

# N(0, sqrt(2 / (k*k*out))): the convolutions of WRN and VGG (He et al., 2015, fan-out form).
he_normal = initializers.variance_scaling(2.0, "fan_out", "normal")
# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default weights, kaiming_uniform with a = sqrt(5).
torch_uniform = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_uniform_bias(fan_in: int) -> initializers.Initializer:
    """Returns PyTorch's default bias initialiser, U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    features: int,
    size: int,
    *,
    name: str,
    kernel_init: initializers.Initializer,
    dtype: DTypeLike | None,
    stride: int = 1,
    use_bias: bool = False,
    operation: Callable[..., jax.Array] = conv_general_dilated,
) -> nn.Conv:
    """Returns a square convolution with PyTorch's symmetric padding size // 2 (XLA's SAME differs at stride 2)."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        conv_general_dilated=operation,
        name=name,
    )


def batch_norm(
    train: bool,
    *,
    name: str,
    dtype: DTypeLike | None,
    scale_init: initializers.Initializer = initializers.ones,
) -> nn.BatchNorm:
    """Returns a BatchNorm over all axes but the last, with PyTorch's momentum 0.1 (0.9 here) and epsilon.

    Statistics are float32 or wider for any `dtype`; in training they are the batch's, with the biased variance.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        scale_init=scale_init,
        dtype=dtype,
        name=name,
    )


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """Max-pools 3x3 windows at stride 2, PyTorch's padding 1: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C]."""
    # Not nn.max_pool: on the CPU backend the gradient of its reduce_window takes three times as long.
    for axis in (1, 2):
        length = x.shape[axis]
        span = 2 * -(-length // 2) - 1  # from the first row of the first window to that of the last
        around = [(0, 0, 0)] * x.ndim
        around[axis] = (1, span + 1 - length, 0)
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), around)
        first, second, third = (lax.slice_in_dim(x, start, start + span, 2, axis) for start in range(3))
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


def global_average_pool(x: jax.Array) -> jax.Array:
    """Averages over height and width: [B, H, W, C] -> [B, C]."""
    return jnp.mean(x, axis=(1, 2))


def at_least_float32(x: jax.Array) -> jax.Array:
    """Widens float16 and bfloat16 to float32; float32 and float64 pass through."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
