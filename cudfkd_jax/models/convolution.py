"""The convolution of all networks: `lax.conv_general_dilated`, in forms that are fast on CPUs.

XLA's CPU backend passes plain convolutions to oneDNN (`runtime.onednn`), but not the input gradients that JAX
derives: these reverse the kernel and dilate the input by the stride inside the convolution, and the rewriter
supports neither. As a plain convolution of operands reversed, transposed and dilated beforehand, an input gradient
runs at the speed of a forward pass, in bfloat16 some ten times as fast. Gradients of float32 kernels stay with
Eigen, which is twice as fast.

In float32, XLA's CPU backend computes convolutions with a plain loop where the kernel is larger than the map (3x3
on 2x2, the last stage of a ResNet on 16 pixels), ten to fifty times as slowly as a product of matrices.
"""

import functools
import math
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
_WIDE = 2**15  # smallest channels times features for which products are faster, in bfloat16
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

    On CPUs, two-dimensional convolutions `[B, H, W, C] * [h, w, C, F]` without groups and dilation have custom
    gradients where oneDNN is in use, in bfloat16 and float32, and are products of matrices where a float32 or
    float64 kernel is larger than the maps; results agree to the accuracy of the dtype. All others are JAX's.
    """
    plain = (
        rhs.dtype == lhs.dtype
        and lhs.ndim == 4
        and feature_group_count == batch_group_count == 1
        and set(lhs_dilation or (1,)) | set(rhs_dilation or (1,)) == {1}
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
        and preferred_element_type in (None, lhs.dtype)
    )
    if plain:
        strides = (window_strides[0], window_strides[1])
        pads = padding
        if isinstance(pads, str):
            pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, pads)
        (top, bottom), (left, right) = pads
        around = ((top, bottom), (left, right))
        if _exceeds_the_maps(lhs, rhs, strides, around):
            return _by_products(lhs, rhs, strides, around)
        if onednn.in_use(lhs.dtype):
            return _convolve(lhs, rhs, strides, around)
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


def _exceeds_the_maps(x: Array, kernel: Array, strides: Pair, padding: Padding) -> bool:
    """Returns whether XLA's CPU backend would use a plain loop for the convolution or its input gradient."""
    if jax.default_backend() != "cpu" or x.dtype not in (jnp.float32, jnp.float64):
        return False
    if math.prod(kernel.shape) >= 2**31:  # no machine holds it, and only convolutions of it can be traced
        return False
    sizes = [
        (min(length, (length + low + high - size) // stride + 1), size)
        for length, size, stride, (low, high) in zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    ]
    return any(length < size for length, size in sizes) and all(length > 0 for length, _ in sizes)


def _by_products(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """Computes a convolution as one product [B·H·W, h·w·C] · [h·w·C, F] of all patches."""
    height, width, channels, features = kernel.shape
    taps = _taps(x, (height, width), strides, padding)
    patches = jnp.concatenate(taps, axis=-1)
    product = patches.reshape(-1, height * width * channels) @ kernel.reshape(-1, features)
    return product.reshape(*patches.shape[:3], features)


def _taps(x: Array, kernel: Pair, strides: Pair, padding: Padding) -> list[Array]:
    """Returns for each place in the kernel, row by row, the pixels `[B, rows, columns, C]` that it weighs."""
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)))
    (height, width), (down, right) = kernel, strides
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    return [x[:, i : i + rows : down, j : j + columns : right] for i in range(height) for j in range(width)]


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
    # The sums are rounded to the kernel's dtype again; the barrier keeps them out of the convolution.
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
    wide = channels * features >= _WIDE and x.dtype == jnp.bfloat16
    if max(height, width) <= _SMALL or wide:
        return _kernel_gradient_by_products(x, gradient, shape, strides, padding)
    if features <= _NARROW and strides == (1, 1):
        return _kernel_gradient_reversed(x, gradient, shape, padding)
    return _kernel_gradient_by_images(x, gradient, shape, strides, padding)


def _kernel_gradient_by_images(
    x: Array, gradient: Array, shape: tuple[int, ...], strides: Pair, padding: Padding
) -> Array:
    """Computes it in JAX's form: the gradient slides over the maps of each channel, summed over the images.

    XLA converts such a convolution to a layout that is fast in oneDNN only in a program's entry computation;
    inside a loop it would run oneDNN's reference code. Operands transposed beforehand are fast in both. In float32
    the images are summed in reverse order, as XLA passes no reversed kernel to oneDNN.
    """
    extent = [(length - 1) * stride + 1 for length, stride in zip(gradient.shape[1:3], strides, strict=True)]
    around = [
        (low, size - 1 + taken - length - low)
        for size, taken, length, (low, _) in zip(shape[:2], extent, x.shape[1:3], padding, strict=True)
    ]
    maps, slid = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
    if x.dtype == jnp.bfloat16:
        maps, slid = lax.optimization_barrier(maps), lax.optimization_barrier(slid)
    else:
        maps, slid = lax.rev(maps, (3,)), lax.rev(slid, (2,))
    taps = lax.conv_general_dilated(
        maps,
        slid,
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
    flat = gradient.reshape(-1, features)

    def product(seen: Array) -> Array:
        # Without the barrier XLA would fuse the copy into its own product.
        seen = lax.optimization_barrier(seen.reshape(-1, channels))
        return lax.dot_general(seen, flat, (((0,), (0,)), ((), ())))

    return jnp.stack([product(seen) for seen in _taps(x, (height, width), strides, padding)]).reshape(shape)


def _kernel_gradient_reversed(x: Array, gradient: Array, shape: tuple[int, ...], padding: Padding) -> Array:
    """Computes it in JAX's form with the operands exchanged, for stride 1: fastest if F is far below C.

    JAX's form slides the gradient over C images, the input's channels; this one slides the input over F images.
    """
    height, width, channels, features = shape
    (top, bottom), (left, right) = padding
    around = ((height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right))
    taps = _kernel_gradient_by_images(gradient, x, (height, width, features, channels), (1, 1), around)
    return jnp.flip(taps, (0, 1)).swapaxes(2, 3)
