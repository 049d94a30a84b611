"""The augmentation against crops and flips that NumPy cuts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cudfkd_jax.augment import random_crop_flip


def numpy_variants(image: np.ndarray, padding: int, flip: bool) -> dict[tuple[int, int, bool], np.ndarray]:
    """Every image that the augmentation may make of one, by (row, column, mirrored)."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    variants = {}
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            crop = padded[row : row + height, column : column + width]
            variants[row, column, False] = crop
            if flip:
                variants[row, column, True] = crop[:, ::-1]
    return variants


def chosen(images: np.ndarray, augmented: np.ndarray, padding: int, flip: bool) -> list:
    """Which variant each augmented image is; fails where one is none of them."""
    found = []
    for image, result in zip(images, augmented, strict=True):
        variants = numpy_variants(image, padding, flip)
        found.append(next(key for key, variant in variants.items() if np.array_equal(variant, result)))
    return found


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True)])
def test_every_image_is_a_variant_and_variants_are_equally_likely(dtype, padding, flip):
    # Unlike, non-zero pixels tell all variants of an image apart.
    images = (1 + np.arange(4 * 5 * 3).reshape(1, 4, 5, 3)).repeat(2000, axis=0).astype(dtype)
    augment = jax.jit(random_crop_flip, static_argnames=("padding", "flip"))
    augmented = augment(jax.random.key(0), jnp.asarray(images), padding=padding, flip=flip)
    assert augmented.dtype == dtype
    assert augmented.shape == images.shape
    keys, counts = np.unique(chosen(images, np.asarray(augmented), padding, flip), axis=0, return_counts=True)
    variants = (2 * padding + 1) ** 2 * (1 + flip)
    assert len(keys) == variants
    expected = len(images) / variants
    # Chi-squared with variants - 1 degrees of freedom: mean variants - 1, 6 deviations above it.
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < variants - 1 + 6 * np.sqrt(2 * (variants - 1))


def test_images_of_a_batch_keep_their_own_pixels():
    images = np.random.RandomState(0).randint(1, 256, (32, 6, 6, 1)).astype(np.uint8)
    augmented = random_crop_flip(jax.random.key(1), jnp.asarray(images), padding=1, flip=True)
    assert len(set(chosen(images, np.asarray(augmented), 1, True))) > 5


def test_same_key_same_images_another_key_others():
    images = jax.random.uniform(jax.random.key(0), (16, 8, 8, 3))
    first = random_crop_flip(jax.random.key(1), images, padding=2, flip=True)
    again = random_crop_flip(jax.random.key(1), images, padding=2, flip=True)
    other = random_crop_flip(jax.random.key(2), images, padding=2, flip=True)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_nothing_asked_nothing_done():
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
    np.testing.assert_array_equal(random_crop_flip(jax.random.key(1), images, padding=0, flip=False), images)
