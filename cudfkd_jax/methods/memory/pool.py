"""The best iterate of a synthetic batch, and the image pool that the student is trained on."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from cudfkd_jax.data.augment import random_crop_flip
from cudfkd_jax.methods.context import MethodSettings
from cudfkd_jax.methods.memory.ring import Ring, from_uint8, to_uint8
from cudfkd_jax.runtime.devices import Axis
from cudfkd_jax.runtime.errors import UserError

_HELD_OUT_SHARE = 16  # batch size per held-out image, where only synthetic images can measure agreement


class Best(struct.PyTreeNode):
    """The iterate with the lowest loss of a round.

    Attributes:
        loss: scalar, infinite before the first iterate.
        value: the stored part of the iterate.
    """

    loss: jax.Array
    value: Any

    @classmethod
    def start(cls, value: Any) -> "Best":
        """Returns the state before the first iterate; `value` provides only shapes and dtypes."""
        return cls(jnp.full((), jnp.inf, float), jax.tree.map(jnp.zeros_like, value))

    def offer(self, loss: jax.Array, value: Any) -> "Best":
        """Returns the iterate with the lower loss, the earlier one on ties."""
        return jax.tree.map(functools.partial(jnp.where, loss < self.loss), Best(loss, value), self)


@dataclasses.dataclass(frozen=True)
class ImagePool:
    """Settings of a pool of synthetic images, a uint8 `Ring` with one synthetic batch per slot.

    Attributes:
        image_shape: `(H, W, C)`.
        slots: capacity in batches; a full pool overwrites its oldest batch.
        batch_size: images per synthetic batch, over all devices.
        student_batch_size: images per student step, over all devices.
        held_out: number of last rows per batch that the student never sees and that `preview` shows; with 0,
            previews show the student's images.
        padding: zero pixels around an image before a random crop to its size; 0 disables cropping.
        flip: whether images may be mirrored.

    Raises:
        UserError: at construction, if all rows of a batch are held out.
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

    @classmethod
    def of_run(cls, settings: MethodSettings) -> "ImagePool":
        """Returns a pool that holds all images of a run.

        Raises:
            UserError: without test images, a batch has no second image beside the held-out one.
        """
        data, d, batch_size = settings.data, settings.distill, settings.synthesis.batch_size
        if batch_size < 2 and not data.has_images:
            raise UserError(
                f"synthesis batches of {batch_size} leave the student no image beside the one that stands in for "
                "test images; set --config.synthesis.batch_size to 2 at least"
            )
        return cls(
            image_shape=data.image_shape,
            slots=d.warmup_rounds + d.epochs * d.rounds_per_epoch,
            batch_size=batch_size,
            student_batch_size=d.batch_size,
            held_out=0 if data.has_images else -(-batch_size // _HELD_OUT_SHARE),
            padding=data.padding,
            flip=data.flip,
        )

    def create(self) -> Ring:
        """Returns an empty pool."""
        return Ring.create(self.slots, self.batch_size, self.image_shape, jnp.uint8)

    def push(self, ring: Ring, images: jax.Array) -> Ring:
        """Returns the pool with a batch `[batch_size, H, W, C]` added, clipped to [0, 1]."""
        return ring.push(to_uint8(images))

    def sample(self, ring: Ring, key: jax.Array, axis: Axis) -> jax.Array:
        """Draws a student batch in [0, 1], this device's part `[student_batch_size / axis.size, H, W, C]`.

        Images are drawn independently from all batches in the pool; each is cropped and mirrored independently.
        """
        draw_key, augmentation_key = jax.random.split(key)
        rows = ring.draw_rows(draw_key, self.student_batch_size, 0, self.batch_size - self.held_out)
        rows = random_crop_flip(augmentation_key, rows, padding=self.padding, flip=self.flip)
        return from_uint8(axis.shard(rows))

    def preview(self, ring: Ring, key: jax.Array, count: int) -> jax.Array:
        """Draws `count` unaugmented images in [0, 1], from the held-out rows or, without any, from all rows."""
        first = self.batch_size - self.held_out if self.held_out else 0
        return from_uint8(ring.draw_rows(key, count, first))
