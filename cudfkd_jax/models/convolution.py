"""The convolution of all networks: `lax.conv_general_dilated`, with gradients that suit oneDNN in bfloat16.

XLA's CPU backend passes plain convolutions to oneDNN (`runtime.onednn`), but not the input gradients that JAX
derives: these reverse the kernel and dilate the input by the stride inside the convolution, and the rewriter
supports neither. As a plain convolution of operands reversed, transposed and dilated beforehand, an input gradient
runs at the speed of a forward pass, some ten times as fast.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from cudfkd_jax.runtime import onednn

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# The form of a kernel gradient follows from fixed rules: measuring at run time could make a resumed run differ
# bitwise.
_SMALL = 2  # largest kernel size for which products are faster
_WIDE = 2**15  # smallest channels times features for which products are faster
_NARROW = 4  # largest number of features for which the operands are exchanged

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
    """Computes `lax.conv_general_dilated`, for `nn.Conv.conv_general_dilated`.

    Where oneDNN is in use, two-dimensional bfloat16 convolutions `[B, H, W, C] * [h, w, C, F]` without groups and
    dilation have custom gradients; results agree to bfloat16's accuracy. All others are JAX's.
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


def conv_of_upsampled(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: str | Sequence[Pair], **arguments: Any
) -> Array:
    """Convolves maps whose pixels are repeated as 2x2 tiles, for `nn.Conv.conv_general_dilated`.

    With a 3x3 kernel, an output pixel sees 2x2 pixels of the small maps, weighted by sums of taps that depend on
    its position in its tile. Where oneDNN is in use, one convolution of the small maps computes all four positions
    with 4/9 of the operations and without reading a large map.

    Args:
        lhs: `[B, H, W, C]`, before repetition.
        rhs: `[3, 3, C, F]`.
        window_strides: 1, with `padding` 1 on every side; nothing else is supported.
        arguments: further arguments of `lax.conv_general_dilated`.

    Returns:
        `[B, 2H, 2W, F]`.
    """
    if not onednn.in_use(lhs.dtype):
        return lax.conv_general_dilated(upsample_2x(lhs), rhs, window_strides, padding, **arguments)
    batch, height, width, _ = lhs.shape
    features = rhs.shape[-1]
    # The sums are rounded to bfloat16 again; the barrier keeps them out of the convolution.
    kernel = lax.optimization_barrier(_taps_of_tiles(rhs.astype(jnp.float32)).astype(rhs.dtype))
    y = _convolve(lhs, kernel, (1, 1), ((1, 1), (1, 1))).reshape(batch, height + 1, width + 1, 2, 2, features)
    # Row t of y sees rows t - 1 and t: the second pixels of tile t - 1 and the first ones of tile t.
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height + 2, 2 * width + 2, features)
    return y[:, 1:-1, 1:-1]


def upsample_2x(x: Array) -> Array:
    """Repeats each pixel as a 2x2 tile (nearest neighbour): [B, H, W, C] -> [B, 2H, 2W, C]."""
    batch, h, w, channels = x.shape
    # On the CPU, faster forward and backward than jnp.repeat and jax.image.resize.
    tiles = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, h, 2, w, 2, channels))
    return tiles.reshape(batch, 2 * h, 2 * w, channels)


def _taps_of_tiles(kernel: Array) -> Array:
    """Converts a kernel [3, 3, C, F] of repeated to [2, 2, C, 4F] of single pixels, a tile's last pixels first."""

    def along(taps: Array) -> Array:  # [3, ...] -> [place, tap, ...]
        return jnp.stack([jnp.stack([taps[0] + taps[1], taps[2]]), jnp.stack([taps[0], taps[1] + taps[2]])])

    rows = along(kernel)  # place, tap, 3, C, F
    both = along(jnp.moveaxis(rows, 2, 0))  # place, tap of the columns, place, tap of the rows, C, F
    taps = jnp.transpose(both, (3, 1, 4, 2, 0, 5))
    return taps.reshape(2, 2, kernel.shape[2], 4 * kernel.shape[3])


def _input_gradient(
    gradient: Array, kernel: Array, shape: tuple[int, ...], strides: Pair, padding: Padding
) -> Array:
    """Computes the input gradient: the dilated gradient convolved with the reversed and transposed kernel.

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
    """Computes the kernel gradient in the form that is fastest for its shape (docs/performance.md)."""
    height, width, channels, features = shape
    if max(height, width) <= _SMALL or channels * features >= _WIDE:
        return _kernel_gradient_by_products(x, gradient, shape, strides, padding)
    if features <= _NARROW and strides == (1, 1):
        return _kernel_gradient_reversed(x, gradient, shape, padding)
    return _kernel_gradient_by_images(x, gradient, shape, strides, padding)


def _kernel_gradient_by_images(
    x: Array, gradient: Array, shape: tuple[int, ...], strides: Pair, padding: Padding
) -> Array:
    """Computes it in JAX's form: the gradient slides over the maps of each channel, summed over the images.

    XLA converts such a convolution to a layout that is fast in oneDNN only in a program's entry computation;
    inside a loop it would run oneDNN's reference code. Operands transposed beforehand are fast in both.
    """
    extent = [(length - 1) * stride + 1 for length, stride in zip(gradient.shape[1:3], strides, strict=True)]
    around = [
        (low, size - 1 + taken - length - low)
        for size, taken, length, (low, _) in zip(shape[:2], extent, x.shape[1:3], padding, strict=True)
    ]
    taps = lax.conv_general_dilated(
        lax.optimization_barrier(x.transpose(3, 1, 2, 0)),
        lax.optimization_barrier(gradient.transpose(1, 2, 0, 3)),
        (1, 1),
        around,
        rhs_dilation=strides,
        dimension_numbers=_LAYOUT,
    )
    return taps.transpose(1, 2, 0, 3)


def _kernel_gradient_by_products(
    x: Array, gradient: Array, shape: tuple[int, ...], strides: Pair, padding: Padding
) -> Array:
    """Computes it as a product [C, B·H·W] · [B·H·W, F] per kernel tap: fastest for large C and F."""
    height, width, channels, features = shape
    (down, right), (rows, columns) = strides, gradient.shape[1:3]
    around = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), around)
    flat = gradient.reshape(-1, features)

    def tap(i: int, j: int) -> Array:
        seen = x[:, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
        # Without the barrier XLA would fuse the copy into its own product.
        seen = lax.optimization_barrier(seen.reshape(-1, channels))
        return lax.dot_general(seen, flat, (((0,), (0,)), ((), ())))

    return jnp.stack([tap(i, j) for i in range(height) for j in range(width)]).reshape(shape)


def _kernel_gradient_reversed(x: Array, gradient: Array, shape: tuple[int, ...], padding: Padding) -> Array:
    """Computes it in JAX's form with the operands exchanged, for stride 1: fastest if F is far below C.

    JAX's form slides the gradient over C images, the input's channels; this one slides the input over F images.
    """
    height, width, channels, features = shape
    (top, bottom), (left, right) = padding
    around = ((height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right))
    taps = _kernel_gradient_by_images(gradient, x, (height, width, features, channels), (1, 1), around)
    return jnp.flip(taps, (0, 1)).swapaxes(2, 3)
