"""Replay of past synthetic images: a memory for any method that trains a generator.

K. Binici, N. T. Pham, T. Mitra, K. Leman, "Preventing Catastrophic Forgetting and Distribution Mismatch in
Knowledge Distillation via Synthetic Data", WACV 2022, and the memory that Li et al. ("How to Teach") name as
future work for CuDFKD. An adversarial generator moves away from its earlier images, and the student forgets them.
A slot of R images therefore enters a ring of S slots at regular intervals, and each student step is on

    [ B new images,  R images of one slot, drawn uniformly among those that are filled ].

The original stores the first R images of the last student batch of an epoch. Here the memory is written before
the first synthesis step of the following round: the generator has not changed since those student steps, so
images from new latents have the same distribution, and no step has to keep its batch. Until a slot is filled the
R images are new ones too, so that all batches have the same size.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from cudfkd_jax.methods.base import Method
from cudfkd_jax.methods.memory.ring import Ring
from cudfkd_jax.models.classifier import FrozenClassifier
from cudfkd_jax.objectives.terms import Metrics
from cudfkd_jax.runtime.devices import Axis
from cudfkd_jax.runtime.errors import UserError

_SHARE = 8  # new images per replayed one

# (aux, teacher, key, axis) -> images, this device's part
Sample = Callable[[Any, FrozenClassifier, jax.Array, Axis], jax.Array]


class Remembering(struct.PyTreeNode):
    """The state of a method together with its past images.

    Attributes:
        inner: the state of the method without memory.
        ring: float images, unquantised, `[S, R, H, W, C]`.
    """

    inner: Any
    ring: Ring


def with_memory(
    method: Method, *, sample_rows: Sample, slots: int, rows: int, steps_per_epoch: int, every_epochs: int
) -> Method:
    """Adds past synthetic images to a method's student batches.

    Args:
        method: the method without memory, with B images per student step.
        sample_rows: `Method.sample` of the same method with batches of `rows` images.
        slots: S, slots of the ring.
        rows: R, images per slot, at most B.
        steps_per_epoch: student steps per epoch.
        every_epochs: a slot is written after epoch 0 and every `every_epochs` epochs from then on.

    Returns:
        A method with B + R images per student step.

    Raises:
        UserError: a number is not positive. While a step is traced: the devices cannot share R images evenly.
    """
    numbers = {"slots": slots, "rows": rows, "steps_per_epoch": steps_per_epoch, "every_epochs": every_epochs}
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name}={value} of the memory is not positive; give at least 1")

    def init(key: jax.Array) -> Remembering:
        inner = method.init(key)
        image = jax.eval_shape(lambda: method.preview(inner, key, 1))
        return Remembering(inner, Ring.create(slots, rows, image.shape[1:], image.dtype))

    def begin(
        aux: Remembering, teacher: FrozenClassifier, key: jax.Array, step: jax.Array, axis: Axis
    ) -> Remembering:
        memory_key, inner_key = jax.random.split(key)
        images = axis.gather(method.sample(aux.inner, teacher, memory_key, axis))[:rows]
        due = (step > 0) & ((step - steps_per_epoch) % (every_epochs * steps_per_epoch) == 0)
        pushed = aux.ring.push(images.astype(aux.ring.values.dtype))
        ring = jax.tree.map(functools.partial(jnp.where, due), pushed, aux.ring)
        inner = method.begin(aux.inner, teacher, inner_key, step, axis) if method.begin else aux.inner
        return Remembering(inner, ring)

    def synthesise(
        aux: Remembering,
        teacher: FrozenClassifier,
        student: FrozenClassifier,
        key: jax.Array,
        step: jax.Array,
        axis: Axis,
    ) -> tuple[Remembering, Metrics]:
        inner, metrics = method.synthesise(aux.inner, teacher, student, key, step, axis)
        return aux.replace(inner=inner), metrics

    def finish(
        aux: Remembering, teacher: FrozenClassifier, key: jax.Array, step: jax.Array, axis: Axis
    ) -> Remembering:
        assert method.finish
        return aux.replace(inner=method.finish(aux.inner, teacher, key, step, axis))

    def sample(aux: Remembering, teacher: FrozenClassifier, key: jax.Array, axis: Axis) -> jax.Array:
        check_shares("rows of the memory", rows, axis)
        new_key, first_key, slot_key = jax.random.split(key, 3)
        new = method.sample(aux.inner, teacher, new_key, axis)
        at_first = sample_rows(aux.inner, teacher, first_key, axis)
        stored = axis.shard(aux.ring.draw_slot(slot_key)).astype(new.dtype)
        return jnp.concatenate([new, jnp.where(aux.ring.filled > 0, stored, at_first)])

    def preview(aux: Remembering, key: jax.Array, count: int) -> jax.Array:
        return method.preview(aux.inner, key, count)

    return method._replace(
        init=init,
        begin=begin,
        synthesise=synthesise,
        finish=finish if method.finish else None,
        sample=sample,
        student_loss=lambda student, teacher, aux, *at: method.student_loss(student, teacher, aux.inner, *at),
        preview=preview,
    )


def replayed_rows(batch_size: int) -> int:
    """Returns the number of replayed images that a student batch adds to `batch_size` new ones.

    Raises:
        UserError: the batch size is not a multiple of 8.
    """
    if batch_size % _SHARE:
        raise UserError(
            f"distill.batch_size={batch_size} has no {_SHARE}th part to remember; set "
            f"--config.distill.batch_size to a multiple of {_SHARE}"
        )
    return batch_size // _SHARE


def slots_for(capacity: int, rows: int) -> int:
    """Returns the number of slots of a memory that holds `capacity` images, stored `rows` at a time.

    Raises:
        UserError: the capacity is not a positive multiple of the rows.
    """
    if capacity < 1 or capacity % rows:
        raise UserError(
            f"capacity={capacity} of the memory cannot be filled {rows} images at a time; "
            f"set it to a positive multiple of {rows}"
        )
    return capacity // rows


def check_shares(what: str, count: int, axis: Axis) -> None:
    """Checks that the devices can share a number of images evenly; otherwise some would be dropped silently.

    Raises:
        UserError: `count` is not a multiple of the number of devices.
    """
    if count % axis.size:
        raise UserError(
            f"the {count} {what} cannot be shared by {axis.size} devices; "
            f"choose a batch size that makes them a multiple of {axis.size}, or fewer devices"
        )
