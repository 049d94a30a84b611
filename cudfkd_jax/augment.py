"""Training augmentation of a whole batch on the device."""

import jax
import jax.numpy as jnp


def random_crop_flip(key: jax.Array, images: jax.Array, *, padding: int, flip: bool) -> jax.Array:
    """Shifts each image at random over a zero border and mirrors each with probability 1/2.

    The usual augmentation of CIFAR (He et al., "Deep Residual Learning for Image Recognition", 2016, §4.2:
    4 pixels of padding, a random crop of the original size, horizontal flips).

    Args:
      key: random key; one key gives one set of crops, whatever the pixels.
      images: float or uint8 [B, H, W, C].
      padding: pixels of zeros added on each side before cropping, so shifts are uniform in
        [-padding, padding] in either direction; 0 crops nothing.
      flip: whether to mirror left to right.

    Returns:
      Images of the same shape and type.
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
