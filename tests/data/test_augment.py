"""Compares the augmentation with crops and flips in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cudfkd_jax.data.augment import random_crop_flip, random_resized_crop

crop_flip = jax.jit(random_crop_flip, static_argnames=("padding", "flip"))


def numpy_variants(image: np.ndarray, padding: int, flip: bool) -> dict[tuple[int, int, bool], np.ndarray]:
    """Returns every possible augmentation of an image, by (row, column, mirrored)."""
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
    """Returns the variant of each augmented image; fails if an image matches none."""
    keys: dict[bytes, dict[bytes, tuple]] = {}  # by image, then by variant
    for image in images:
        if image.tobytes() not in keys:
            variants = numpy_variants(image, padding, flip)
            keys[image.tobytes()] = {variant.tobytes(): key for key, variant in variants.items()}
    return [keys[image.tobytes()][result.tobytes()] for image, result in zip(images, augmented, strict=True)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True)])
def test_every_image_is_a_variant_and_variants_are_equally_likely(dtype, padding, flip):
    # Distinct, non-zero pixels distinguish all variants of an image.
    images = (1 + np.arange(4 * 5 * 3).reshape(1, 4, 5, 3)).repeat(2000, axis=0).astype(dtype)
    augmented = crop_flip(jax.random.key(0), jnp.asarray(images), padding=padding, flip=flip)
    assert augmented.dtype == dtype
    assert augmented.shape == images.shape
    keys, counts = np.unique(chosen(images, np.asarray(augmented), padding, flip), axis=0, return_counts=True)
    variants = (2 * padding + 1) ** 2 * (1 + flip)
    assert len(keys) == variants
    expected = len(images) / variants
    # Chi-squared with variants - 1 degrees of freedom: its mean is variants - 1; the limit is 6 deviations above.
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < variants - 1 + 6 * np.sqrt(2 * (variants - 1))


def test_images_of_a_batch_keep_their_own_pixels():
    images = np.random.RandomState(0).randint(1, 256, (32, 6, 6, 1)).astype(np.uint8)
    augmented = crop_flip(jax.random.key(1), images, padding=1, flip=True)
    assert len(set(chosen(images, np.asarray(augmented), 1, True))) > 5


def test_key_determines_the_images():
    images = np.random.default_rng(0).random((16, 8, 8, 3), np.float32)
    first, again, other = (crop_flip(jax.random.key(seed), images, padding=2, flip=True) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_disabled_augmentation_is_the_identity():
    images = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    np.testing.assert_array_equal(crop_flip(jax.random.key(1), images, padding=0, flip=False), images)


resized_crop = jax.jit(random_resized_crop, static_argnames=("area", "aspect_ratio"))


def boxes(key: jax.Array, batch: int, height: int, width: int, **ranges) -> np.ndarray:
    """(top, left, height, width) of each box, read off an image whose pixels are their own coordinates.

    An enlarged box begins at its first pixel and ends at its last.
    """
    ramps = np.broadcast_to(np.stack(np.mgrid[:height, :width], axis=-1), (batch, height, width, 2))
    cut = np.asarray(resized_crop(key, jnp.asarray(ramps, jnp.float32), **ranges), np.float64)
    first, last = cut[:, 0, 0], cut[:, -1, -1]
    assert np.abs(first - np.rint(first)).max() < 1e-4 and np.abs(last - np.rint(last)).max() < 1e-4
    return np.rint(np.concatenate([first, last - first + 1], axis=1)).astype(int)


def test_resized_crop_is_the_box_alone_interpolated_along_both_axes():
    random = np.random.default_rng(0)
    images = random.normal(size=(50, 7, 9, 2)).astype(np.float32)
    key = jax.random.key(4)
    found = np.asarray(resized_crop(key, jnp.asarray(images)))
    assert found.shape == images.shape and found.dtype == images.dtype

    def enlarged(x, axis, size):
        centres = (np.arange(size) + 0.5) * x.shape[axis] / size - 0.5
        return np.apply_along_axis(lambda line: np.interp(centres, np.arange(len(line)), line), axis, x)

    for image, result, (top, left, height, width) in zip(images, found, boxes(key, 50, 7, 9), strict=True):
        box = image[top : top + height, left : left + width]
        np.testing.assert_allclose(result, enlarged(enlarged(box, 0, 7), 1, 9), atol=1e-5)


def test_boxes_have_the_configured_areas_aspect_ratios_and_places():
    """Compares with individual draws, on images large enough that rounding hardly matters."""
    size, batch = 64, 4000
    top, left, height, width = boxes(jax.random.key(0), batch, size, size).T
    random = np.random.default_rng(0)
    expected = []
    while len(expected) < batch:
        area, ratio = random.uniform(0.25, 1) * size**2, np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        sides = np.rint((np.sqrt(area / ratio), np.sqrt(area * ratio)))
        if sides.max() <= size:
            expected.append(sides)
    for found, wanted in zip((height, width), np.transpose(expected), strict=True):
        assert stats.ks_2samp(found, wanted).pvalue > 1e-3
    assert stats.ks_2samp(height / width, np.divide(*np.transpose(expected))).pvalue > 1e-3
    for corner, side in ((top, height), (left, width)):
        assert corner.min() >= 0 and (corner + side).max() <= size
        room = size - side > 8
        assert stats.kstest((corner[room] + 0.5) / (size - side[room] + 1), "uniform").pvalue > 1e-3


def test_a_box_that_never_fits_is_the_whole_image():
    found = boxes(jax.random.key(0), 8, 4, 16, area=(0.9, 1.0), aspect_ratio=(1.0, 1.0))
    np.testing.assert_array_equal(found, [[0, 0, 4, 16]] * 8)


def test_the_whole_image_comes_back_unchanged():
    images = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    found = resized_crop(jax.random.key(1), images, area=(1.0, 1.0), aspect_ratio=(1.0, 1.0))
    np.testing.assert_array_equal(found, images)


def test_resized_crop_has_the_gradient_of_a_linear_map():
    """⟨y, A x⟩ = ⟨Aᵀ y, x⟩, A the same for one key."""
    x, y = np.random.default_rng(0).standard_normal((2, 3, 6, 6, 2), np.float32)
    product = jax.jit(jax.value_and_grad(lambda x: jnp.vdot(y, random_resized_crop(jax.random.key(2), x))))
    value, gradient = product(x)
    np.testing.assert_allclose(np.vdot(gradient, x), value, rtol=1e-4)
    assert np.abs(gradient).max() > 0.1
