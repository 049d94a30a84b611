"""An on-device memory of fixed capacity: image pools, feature banks, past batches.

The memory is replicated on every device.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike


class Ring(struct.PyTreeNode):
    """A ring buffer of slots of rows; once all are full, a new slot overwrites the oldest.

    Attributes:
        values: `[slots, rows, ...]`.
        pushes: int32, the number of slots written so far.
    """

    values: jax.Array
    pushes: jax.Array

    @classmethod
    def create(cls, slots: int, rows: int, shape: tuple[int, ...], dtype: DTypeLike) -> "Ring":
        """Returns an empty ring of `slots` times `rows` values of the given shape and dtype."""
        return cls(jnp.zeros((slots, rows, *shape), dtype), jnp.zeros((), jnp.int32))

    @property
    def filled(self) -> jax.Array:
        """The number of filled slots, int32."""
        return jnp.minimum(self.pushes, self.values.shape[0])

    def push(self, rows: jax.Array) -> "Ring":
        """Returns the ring with one more slot, `[rows, ...]` of the ring's dtype."""
        values = jax.lax.dynamic_update_index_in_dim(self.values, rows, self.pushes % self.values.shape[0], axis=0)
        return Ring(values, self.pushes + 1)

    def draw_slot(self, key: jax.Array) -> jax.Array:
        """Draws one filled slot uniformly, `[rows, ...]`; zeros if none is filled."""
        return self.values[jax.random.randint(key, (), 0, jnp.maximum(self.filled, 1))]

    def draw_rows(self, key: jax.Array, count: int, first: int = 0, last: int | None = None) -> jax.Array:
        """Draws `count` rows of filled slots with replacement, `[count, ...]`.

        Args:
            key: the random key.
            count: the number of rows.
            first, last: restricts the draw to rows [first, last) of each slot; None takes the slot's end.
        """
        slot_key, row_key = jax.random.split(key)
        slots = jax.random.randint(slot_key, (count,), 0, jnp.maximum(self.filled, 1))
        rows = jax.random.randint(row_key, (count,), first, self.values.shape[1] if last is None else last)
        return self.values[slots, rows]

    def draw_distinct(self, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Draws `count` rows of filled slots uniformly without replacement.

        Args:
            key: the random key.
            count: the number of rows, at most slots times rows.

        Returns:
            The rows `[count, ...]` and a bool mask `[count]` of valid ones: if fewer rows are filled, all of
            them come first and the rest are invalid.
        """
        slots, rows = self.values.shape[:2]
        filled = jnp.arange(slots * rows) < self.filled * rows
        lots = jnp.where(filled, jax.random.uniform(key, (slots * rows,)), -1)
        highest, chosen = jax.lax.top_k(lots, count)
        return self.values.reshape(slots * rows, *self.values.shape[2:])[chosen], highest >= 0


def to_uint8(images: jax.Array) -> jax.Array:
    """Converts images in [0, 1] to a pool's uint8, rounded to 256 levels."""
    return jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)


def from_uint8(images: jax.Array) -> jax.Array:
    """Converts a pool's uint8 images to floats in [0, 1]."""
    return images.astype(float) / 255
