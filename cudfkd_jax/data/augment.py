"""On-device training augmentation of a whole batch."""

import math

import jax
import jax.numpy as jnp

_TRIES = 10


def random_crop_flip(key: jax.Array, images: jax.Array, *, padding: int, flip: bool) -> jax.Array:
    """Shifts each image at random over a zero border and mirrors it with probability 1/2.

    The usual augmentation of CIFAR (He et al., "Deep Residual Learning for Image Recognition", 2016, §4.2:
    4 pixels of padding, a random crop of the original size, horizontal flips).

    Args:
      key: random key; it determines the crops independently of the pixels.
      images: float or uint8 [B, H, W, C].
      padding: zero pixels added on each side before cropping, so that shifts are uniform in
        [-padding, padding] in either direction; 0 disables cropping.
      flip: whether to mirror left to right.

    Returns:
      Images of the same shape and dtype.
    """
    batch, height, width, channels = images.shape
    crop_key, flip_key = jax.random.split(key)
    if padding:
        padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        corners = jax.random.randint(crop_key, (batch, 2), 0, 2 * padding + 1)

        def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

        images = jax.vmap(crop)(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def random_resized_crop(
    key: jax.Array,
    images: jax.Array,
    *,
    area: tuple[float, float] = (0.25, 1.0),
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
    """Crops a random box from each image and resizes it to the image's size; differentiable in the pixels.

    The crop of Szegedy et al., "Going Deeper with Convolutions", 2015, §6: a box of whole pixels at a uniform
    position, with a uniform share of the area and a log-uniform aspect ratio, redrawn (up to ten times) if it does
    not fit. Only pixels of the box are interpolated, bilinearly with pixel centres at half-integers.

    Args:
      key: random key; it determines the boxes independently of the pixels.
      images: float [B, H, W, C].
      area: smallest and largest share of the image's area before the sides are rounded.
      aspect_ratio: smallest and largest width / height.

    Returns:
      Images of the same shape and dtype; the whole image if none of its ten boxes fits.
    """
    batch, height, width, _ = images.shape
    corners, sides = _boxes(key, batch, height, width, area, aspect_ratio)
    rows = _bilinear_weights(corners[:, 0], sides[:, 0], height, images.dtype)
    columns = _bilinear_weights(corners[:, 1], sides[:, 1], width, images.dtype)
    # Full precision: accelerators would round the pixels in a default matrix product.
    return jnp.einsum("bij,bjkc,blk->bilc", rows, images, columns, precision=jax.lax.Precision.HIGHEST)


def _boxes(
    key: jax.Array,
    batch: int,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect_ratio: tuple[float, float],
) -> tuple[jax.Array, jax.Array]:
    """Draws random boxes as int32 (top, left) and (height, width), `[batch, 2]` each."""
    area_key, ratio_key, corner_key = jax.random.split(key, 3)
    pixels = height * width * jax.random.uniform(area_key, (batch, _TRIES), minval=area[0], maxval=area[1])
    low, high = (math.log(ratio) for ratio in aspect_ratio)
    ratios = jnp.exp(jax.random.uniform(ratio_key, (batch, _TRIES), minval=low, maxval=high))
    sides = jnp.round(jnp.stack([jnp.sqrt(pixels / ratios), jnp.sqrt(pixels * ratios)], axis=-1)).astype(jnp.int32)
    whole = jnp.asarray([height, width], jnp.int32)
    fits = jnp.all((sides > 0) & (sides <= whole), axis=-1)
    first = jnp.take_along_axis(sides, jnp.argmax(fits, axis=1)[:, None, None], axis=1)[:, 0]
    sides = jnp.where(jnp.any(fits, axis=1)[:, None], first, whole)
    return jax.random.randint(corner_key, (batch, 2), 0, whole - sides + 1), sides


def _bilinear_weights(start: jax.Array, side: jax.Array, size: int, dtype: jnp.dtype) -> jax.Array:
    """Computes the weights that stretch a box's side to `size`, by output and input pixel, `[B, size, size]`."""
    pixels = jnp.arange(size, dtype=dtype)
    start, side = start[:, None].astype(dtype), side[:, None].astype(dtype)
    sources = start + jnp.clip((pixels + 0.5) * (side / size) - 0.5, 0, side - 1)
    return jnp.maximum(0, 1 - jnp.abs(sources[:, :, None] - pixels))
