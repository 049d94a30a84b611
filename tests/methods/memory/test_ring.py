"""Tests of the ring memory, the image pool on it, and the best iterate."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cudfkd_jax.methods.memory.pool import Best, ImagePool
from cudfkd_jax.methods.memory.ring import Ring, from_uint8, to_uint8
from cudfkd_jax.runtime.devices import SINGLE, Axis
from cudfkd_jax.runtime.errors import UserError

SLOTS, ROWS = 3, 4


def filled(pushes: int) -> Ring:
    """Returns rows that encode their push: 10 · push + row."""
    ring = Ring.create(SLOTS, ROWS, (2,), jnp.int32)
    for push in range(1, pushes + 1):
        ring = jax.jit(Ring.push)(ring, np.broadcast_to(10 * push + np.arange(ROWS)[:, None], (ROWS, 2)))
    return ring


def held(pushes: int) -> set[int]:
    """Returns the ring after `pushes` pushes."""
    newest = range(max(1, pushes - SLOTS + 1), pushes + 1)
    return {10 * push + row for push, row in itertools.product(newest, range(ROWS))}


@pytest.mark.parametrize("pushes", range(2 * SLOTS + 2))
def test_the_newest_slots_are_remembered(pushes):
    ring = filled(pushes)
    assert ring.values.shape == (SLOTS, ROWS, 2) and ring.values.dtype == jnp.int32
    assert (int(ring.pushes), int(ring.filled)) == (pushes, min(pushes, SLOTS))
    assert set(np.ravel(ring.values)) - {0} == held(pushes)


@pytest.mark.parametrize("pushes", [1, 2, SLOTS, SLOTS + 1])
def test_slots_are_drawn_whole_and_equally_often(pushes):
    ring = filled(pushes)
    draw = jax.jit(jax.vmap(Ring.draw_slot, (None, 0)))
    slots = np.asarray(draw(ring, jax.random.split(jax.random.key(0), 900)))[..., 0]
    assert np.all(slots - slots[:, :1] == np.arange(ROWS))
    numbers, counts = np.unique(slots[:, 0] // 10, return_counts=True)
    assert set(numbers) == {value // 10 for value in held(pushes)}
    assert np.abs(counts - 900 / len(numbers)).max() < 100


@pytest.mark.parametrize(("first", "last"), [(0, None), (1, 3), (3, None)])
@pytest.mark.parametrize("pushes", [1, 2, SLOTS + 2])
def test_rows_are_drawn_equally_often_from_their_part_of_each_slot(pushes, first, last):
    draw = jax.jit(Ring.draw_rows, static_argnames=("count", "first", "last"))
    rows = np.asarray(draw(filled(pushes), jax.random.key(1), count=2400, first=first, last=last))
    assert rows.shape == (2400, 2)
    expected = {value for value in held(pushes) if value % 10 in range(ROWS)[first:last]}
    values, counts = np.unique(rows[:, 0], return_counts=True)
    assert set(values) == expected
    assert np.abs(counts - 2400 / len(expected)).max() < 6 * np.sqrt(2400 / len(expected))


@pytest.mark.parametrize("count", [1, 5, 8, SLOTS * ROWS])
@pytest.mark.parametrize("pushes", [0, 1, 2, SLOTS, SLOTS + 1])
def test_distinct_rows_are_as_many_as_there_are(pushes, count):
    """Checks this up to the moment at which the ring becomes full."""
    draw = jax.jit(Ring.draw_distinct, static_argnames="count")
    rows, drawn = draw(filled(pushes), jax.random.key(2), count=count)
    assert rows.shape == (count, 2) and drawn.shape == (count,) and drawn.dtype == bool
    expected = min(count, len(held(pushes)))
    assert np.array_equal(drawn, np.arange(count) < expected)  # these are first
    values = np.asarray(rows)[:expected, 0]
    assert len(set(values)) == expected and set(values) <= held(pushes)


def test_every_set_of_distinct_rows_is_as_likely():
    ring = filled(1)
    keys = jax.random.split(jax.random.key(3), 1800)
    rows, _ = jax.jit(jax.vmap(functools.partial(ring.draw_distinct, count=2)))(keys)
    pairs, counts = np.unique(np.sort(np.asarray(rows)[..., 0], axis=1), axis=0, return_counts=True)
    assert len(pairs) == 6
    assert ((counts - 300) ** 2 / 300).sum() < 30  # chi-squared with 5 degrees of freedom


def test_pixels_are_kept_to_256_levels():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(jax.jit(lambda levels: to_uint8(from_uint8(levels)))(levels), levels)
    np.testing.assert_array_equal(jax.jit(to_uint8)(np.array([-0.3, 0.4 / 255, 0.6 / 255, 1.7])), [0, 0, 1, 255])
    np.testing.assert_allclose(jax.jit(from_uint8)(np.array([0, 51, 255], np.uint8)), [0, 0.2, 1])


def test_the_best_iterate_is_kept_with_its_own_values():
    best = Best.start((jnp.ones(2), jnp.ones((), jnp.uint8)))
    assert np.isinf(best.loss)
    for loss, value in ((3.0, 1), (1.0, 2), (1.0, 3), (np.nan, 4), (2.0, 5)):
        best = jax.jit(Best.offer)(best, np.float32(loss), (np.full(2, value, np.float32), np.uint8(value)))
    assert float(best.loss) == 1
    np.testing.assert_array_equal(best.value[0], [2, 2])  # the earlier of two equal iterates
    assert int(best.value[1]) == 2 and best.value[1].dtype == jnp.uint8


push_images = jax.jit(ImagePool.push, static_argnums=0)
sample = jax.jit(ImagePool.sample, static_argnums=(0, 3))
show = jax.jit(ImagePool.preview, static_argnums=(0, 3))


def pool(**changes) -> ImagePool:
    settings = {"slots": SLOTS, "batch_size": ROWS, "student_batch_size": 600, "held_out": 1}
    return ImagePool(image_shape=(4, 4, 1), **settings | {"padding": 0, "flip": False} | changes)


def pushed(images: ImagePool, pushes: int) -> Ring:
    """Returns uniformly grey images of level 10 · push + row of 255."""
    ring = images.create()
    for push in range(1, pushes + 1):
        levels = (10 * push + np.arange(ROWS, dtype=np.float32)) / 255
        ring = push_images(images, ring, np.broadcast_to(levels[:, None, None, None], (ROWS, 4, 4, 1)))
    return ring


def seen(images: jax.Array) -> set[int]:
    levels = np.asarray(images) * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    return set(np.rint(levels).astype(int).ravel())


@pytest.mark.parametrize("held_out", [0, 1, 3])
@pytest.mark.parametrize("pushes", [1, SLOTS + 1])
def test_student_and_preview_share_no_image_where_some_are_held_out(pushes, held_out):
    images = pool(held_out=held_out)
    ring = pushed(images, pushes)
    assert ring.values.dtype == jnp.uint8
    student = seen(sample(images, ring, jax.random.key(0), SINGLE))
    preview = show(images, ring, jax.random.key(1), 300)
    assert preview.shape == (300, 4, 4, 1)
    assert student == {value for value in held(pushes) if value % 10 < ROWS - held_out}
    assert seen(preview) == (held(pushes) - student if held_out else held(pushes))


def test_each_image_of_the_student_is_augmented_by_itself():
    images = pool(padding=1, flip=True)
    image = (1 + np.arange(16, dtype=np.float32).reshape(4, 4, 1)) / 255
    ring = push_images(images, images.create(), np.broadcast_to(image, (4, 4, 4, 1)))
    drawn = np.asarray(sample(images, ring, jax.random.key(0), SINGLE))
    assert len(np.unique(drawn.round(4), axis=0)) == 18  # 3 × 3 places, mirrored or not
    np.testing.assert_array_equal(
        show(images, ring, jax.random.key(0), 5),
        np.broadcast_to(jax.jit(from_uint8)(np.asarray(ring.values)[0, :1]), (5, 4, 4, 1)),
    )


def test_devices_share_a_student_batch():
    images = pool(student_batch_size=8, padding=1)
    ring = pushed(images, 2)
    whole = sample(images, ring, jax.random.key(0), SINGLE)
    share = jax.vmap(lambda _: images.sample(ring, jax.random.key(0), Axis("devices", 2)), axis_name="devices")
    parts = np.asarray(jax.jit(share)(np.arange(2)))
    np.testing.assert_array_equal(parts.reshape(whole.shape), whole)


@pytest.mark.parametrize("held_out", [-1, ROWS, ROWS + 1])
def test_a_pool_that_leaves_the_student_nothing_is_refused(held_out):
    with pytest.raises(UserError, match=f"held_out={held_out} .*batch_size={ROWS}.* 0 to {ROWS - 1}"):
        pool(held_out=held_out)
