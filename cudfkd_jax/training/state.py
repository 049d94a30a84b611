"""The run state, and the keys of its draws."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.objectives.terms import Metrics

# What a draw is for; folded into the root key, so that draws for different purposes share no bits.
STUDENT_INIT, METHOD_INIT, SYNTHESIS, STUDENT, PREVIEW, ORDER, AUGMENTATION = range(7)
BEGIN, FINISH, DROPOUT, HELD_OUT, ROLLBACK = range(7, 12)


class RunningMetrics(struct.PyTreeNode):
    """Metrics of one kind of step over the running epoch."""

    count: jax.Array  # int32, steps summed
    total: Metrics  # sums over these steps
    last: Metrics  # of the newest step, also where that one failed

    @classmethod
    def zeros(cls, metrics: Any) -> "RunningMetrics":
        """An empty tally for metrics of these shapes and dtypes."""
        total, last = (jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics) for _ in range(2))
        return cls(jnp.zeros((), jnp.int32), total, last)

    def add(self, metrics: Metrics) -> "RunningMetrics":
        return RunningMetrics(self.count + 1, jax.tree.map(jnp.add, self.total, metrics), metrics)

    def reset(self) -> "RunningMetrics":
        return self.replace(count=jnp.zeros_like(self.count), total=jax.tree.map(jnp.zeros_like, self.total))


class RunState(struct.PyTreeNode):
    """Everything a run needs to go on.

    Attributes:
        step: int32, student steps taken.
        synthesis_step: int32, synthesis steps taken.
        key: the root key; every draw uses a key folded from it, a purpose and a counter.
        student: the network that is trained.
        aux: the method's own state, opaque.
        synthesis, training: tallies of the running epoch.
        failed: bool, the newest step was not finite and has been undone.
        rollbacks: int32, how often the run has gone back to a checkpoint.
    """

    step: jax.Array
    synthesis_step: jax.Array
    key: jax.Array
    student: TrainState
    aux: Any
    synthesis: RunningMetrics
    training: RunningMetrics
    failed: jax.Array
    rollbacks: jax.Array

    @classmethod
    def create(cls, key: jax.Array, student: TrainState, aux: Any = ()) -> "RunState":
        """The state before the first step, with tallies of nothing."""
        zero = jnp.zeros((), jnp.int32)
        return cls(
            step=zero,
            synthesis_step=zero,
            key=key,
            student=student,
            aux=aux,
            synthesis=RunningMetrics.zeros({}),
            training=RunningMetrics.zeros({}),
            failed=jnp.zeros((), bool),
            rollbacks=zero,
        )

    def start_epoch(self) -> "RunState":
        return self.replace(synthesis=self.synthesis.reset(), training=self.training.reset())


def purpose_key(key: jax.Array, purpose: int, counter: jax.Array | int = 0) -> jax.Array:
    """The key of one draw: the root key folded with what the draw is for and with a counter."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), counter)


def keep_if_finite(state: RunState, updated: RunState, metrics: Metrics, tally: str) -> RunState:
    """`updated` where every metric is finite; else `state`, marked failed, with these metrics as its last."""
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(m)) for m in jax.tree.leaves(metrics)]))
    good = finite & ~state.failed
    kept: RunState = jax.tree.map(functools.partial(jnp.where, good), updated, state)
    first_bad = ~finite & ~state.failed
    before: RunningMetrics = getattr(kept, tally)
    last = jax.tree.map(functools.partial(jnp.where, first_bad), metrics, before.last)
    return kept.replace(failed=state.failed | ~finite, **{tally: before.replace(last=last)})
