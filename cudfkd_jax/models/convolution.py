"""The convolution of all networks: `lax.conv_general_dilated`, with gradients that suit oneDNN in bfloat16.

XLA's CPU backend hands plain convolutions to oneDNN (`onednn.py`), but not the input gradients that JAX derives:
their kernels are reversed inside the convolution and their inputs dilated by the stride, and the rewriter takes
neither. Written as a plain convolution of operands that are reversed, transposed and dilated beforehand, an input
gradient runs at the rate of a forward pass, some ten times as fast.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from cudfkd_jax import onednn

_LAYOUT = ("NHWC", "HWIO", "NHWC")

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[Pair],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """`lax.conv_general_dilated`, for `nn.Conv.conv_general_dilated`.

    Two-dimensional bfloat16 convolutions `[B, H, W, C] * [h, w, C, F]` without groups and dilation have gradients
    of their own where oneDNN is in use; results agree to bfloat16's accuracy. Everything else is JAX's.
    """
    plain = (
        onednn.in_use(lhs.dtype)
        and rhs.dtype == lhs.dtype
        and lhs.ndim == 4
        and feature_group_count == batch_group_count == 1
        and set(lhs_dilation or (1,)) | set(rhs_dilation or (1,)) == {1}
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
        and preferred_element_type in (None, lhs.dtype)
    )
    if not plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    strides = (window_strides[0], window_strides[1])
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return _convolve(lhs, rhs, strides, ((top, bottom), (left, right)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _forward(x: Array, kernel: Array, strides: Pair, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: Pair, padding: Padding, operands: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = operands
    return (
        _input_gradient(gradient, kernel, x.shape, strides, padding),
        _kernel_gradient(x, gradient, kernel.shape, strides, padding),
    )


_convolve.defvjp(_forward, _backward)


def _input_gradient(
    gradient: Array, kernel: Array, shape: tuple[int, ...], strides: Pair, padding: Padding
) -> Array:
    """The gradient by the input: the dilated gradient convolved with the reversed and transposed kernel.

    Without the barriers XLA would move reversal and dilation back into the convolution.
    """
    if strides != (1, 1):
        inner = ((0, 0, 0), *((0, 0, stride - 1) for stride in strides), (0, 0, 0))
        gradient = lax.optimization_barrier(lax.pad(gradient, jnp.zeros((), gradient.dtype), inner))
    kernel = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    around = [
        (size - 1 - before, length - extent + before)
        for size, (before, _), length, extent in zip(
            kernel.shape[:2], padding, shape[1:3], gradient.shape[1:3], strict=True
        )
    ]
    return lax.conv_general_dilated(gradient, kernel, (1, 1), around, dimension_numbers=_LAYOUT)


def _kernel_gradient(x: Array, gradient: Array, shape: tuple[int, ...], strides: Pair, padding: Padding) -> Array:
    """The gradient by the kernel, as JAX derives it."""

    def convolve(kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)

    return jax.linear_transpose(convolve, jax.ShapeDtypeStruct(shape, x.dtype))(gradient)[0]
