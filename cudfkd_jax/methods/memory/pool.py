"""From the iterates of a synthetic batch to what the student is trained on: the best one, and the image pool."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from cudfkd_jax.data.augment import random_crop_flip
from cudfkd_jax.methods.memory.ring import Ring, from_uint8, to_uint8
from cudfkd_jax.runtime.devices import Axis
from cudfkd_jax.runtime.errors import UserError


class Best(struct.PyTreeNode):
    """The iterate with the least loss of a round.

    Attributes:
        loss: scalar, infinite before the first iterate.
        value: what is kept of the iterate.
    """

    loss: jax.Array
    value: Any

    @classmethod
    def start(cls, value: Any) -> "Best":
        """Before the first iterate; `value` only gives shapes and dtypes."""
        return cls(jnp.full((), jnp.inf), jax.tree.map(jnp.zeros_like, value))

    def offer(self, loss: jax.Array, value: Any) -> "Best":
        """The better of this and of an iterate with its own loss; the earlier one where they are equal."""
        return jax.tree.map(functools.partial(jnp.where, loss < self.loss), Best(loss, value), self)


@dataclasses.dataclass(frozen=True)
class ImagePool:
    """Settings of a pool of synthetic images, a `Ring` of uint8 with one synthetic batch a slot.

    Attributes:
        image_shape: `(H, W, C)`.
        slots: batches it holds; when it is full a new one takes the place of the oldest.
        batch_size: images of a synthetic batch, over all devices.
        student_batch_size: images of a student step, over all devices.
        held_out: the last rows of each batch, which the student never sees and which `preview` shows; 0: none,
            and previews are of what the student sees.
        padding: pixels of zeros around an image before a random crop of its size; 0 crops nothing.
        flip: whether images may be mirrored.

    Raises:
        UserError: at construction, where nothing of a batch is left to the student.
    """

    image_shape: tuple[int, int, int]
    slots: int
    batch_size: int
    student_batch_size: int
    held_out: int
    padding: int
    flip: bool

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < self.batch_size:
            raise UserError(
                f"held_out={self.held_out} of batches of batch_size={self.batch_size} synthetic images leaves the "
                f"student none; choose a number from 0 to {self.batch_size - 1}"
            )

    def create(self) -> Ring:
        """The empty pool."""
        return Ring.create(self.slots, self.batch_size, self.image_shape, jnp.uint8)

    def push(self, ring: Ring, images: jax.Array) -> Ring:
        """The pool with a batch `[batch_size, H, W, C]` in [0, 1] more; values outside are clipped."""
        return ring.push(to_uint8(images))

    def sample(self, ring: Ring, key: jax.Array, axis: Axis) -> jax.Array:
        """A student batch in [0, 1], this device's part `[student_batch_size / axis.size, H, W, C]`.

        Drawn one by one from all batches in the pool, and each image cropped and mirrored by itself.
        """
        draw_key, augmentation_key = jax.random.split(key)
        rows = ring.draw_rows(draw_key, self.student_batch_size, 0, self.batch_size - self.held_out)
        rows = random_crop_flip(augmentation_key, rows, padding=self.padding, flip=self.flip)
        return from_uint8(axis.shard(rows))

    def preview(self, ring: Ring, key: jax.Array, count: int) -> jax.Array:
        """`count` images in [0, 1], as they are, from the held-out rows, from all where none are held out."""
        first = self.batch_size - self.held_out if self.held_out else 0
        return from_uint8(ring.draw_rows(key, count, first))
