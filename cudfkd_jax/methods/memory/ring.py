"""A memory of fixed capacity on the device: image pools, banks of features, past batches.

Every device holds the whole memory and the same one.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike


class Ring(struct.PyTreeNode):
    """Slots of rows; a new slot takes the place of the oldest one when all are full.

    Attributes:
        values: `[slots, rows, ...]`.
        pushes: int32, slots ever written.
    """

    values: jax.Array
    pushes: jax.Array

    @classmethod
    def create(cls, slots: int, rows: int, shape: tuple[int, ...], dtype: DTypeLike) -> "Ring":
        """An empty ring of `slots` times `rows` values of a shape and dtype."""
        return cls(jnp.zeros((slots, rows, *shape), dtype), jnp.zeros((), jnp.int32))

    @property
    def filled(self) -> jax.Array:
        """int32, slots that hold something."""
        return jnp.minimum(self.pushes, self.values.shape[0])

    def push(self, rows: jax.Array) -> "Ring":
        """The ring with a slot more, `[rows, ...]` of its own dtype."""
        values = jax.lax.dynamic_update_index_in_dim(self.values, rows, self.pushes % self.values.shape[0], axis=0)
        return Ring(values, self.pushes + 1)

    def draw_slot(self, key: jax.Array) -> jax.Array:
        """One of the filled slots, each as likely, `[rows, ...]`; zeros where none is filled."""
        return self.values[jax.random.randint(key, (), 0, jnp.maximum(self.filled, 1))]

    def draw_rows(self, key: jax.Array, count: int, first: int = 0, last: int | None = None) -> jax.Array:
        """`count` rows of filled slots, drawn one by one with replacement, `[count, ...]`.

        Args:
            key: of the draw.
            count: how many.
            first, last: within each slot only rows in [first, last) are drawn; None: up to its end.
        """
        slot_key, row_key = jax.random.split(key)
        slots = jax.random.randint(slot_key, (count,), 0, jnp.maximum(self.filled, 1))
        rows = jax.random.randint(row_key, (count,), first, self.values.shape[1] if last is None else last)
        return self.values[slots, rows]

    def draw_distinct(self, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """`count` rows of filled slots without replacement, each set of rows as likely.

        Args:
            key: of the draw.
            count: how many, at most slots times rows.

        Returns:
            The rows `[count, ...]`, and bool `[count]`, which of them were drawn: where fewer are filled, all of
            these come first and the others stand for nothing.
        """
        slots, rows = self.values.shape[:2]
        filled = jnp.arange(slots * rows) < self.filled * rows
        lots = jnp.where(filled, jax.random.uniform(key, (slots * rows,)), -1)
        highest, chosen = jax.lax.top_k(lots, count)
        return self.values.reshape(slots * rows, *self.values.shape[2:])[chosen], highest >= 0


def to_uint8(images: jax.Array) -> jax.Array:
    """Images in [0, 1] as they are kept in a pool, rounded to 256 levels."""
    return jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)


def from_uint8(images: jax.Array) -> jax.Array:
    """Images of a pool as floats in [0, 1]."""
    return images.astype(float) / 255
