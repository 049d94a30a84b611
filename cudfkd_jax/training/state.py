"""The run state and its random keys."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.objectives.terms import Metrics

# Purposes of random draws, folded into the root key so that draws for different purposes share no bits.
STUDENT_INIT, METHOD_INIT, SYNTHESIS, STUDENT, PREVIEW, ORDER, AUGMENTATION = range(7)
BEGIN, FINISH, DROPOUT, HELD_OUT, ROLLBACK = range(7, 12)


class RunningMetrics(struct.PyTreeNode):
    """Metrics of one kind of step, accumulated over the current epoch."""

    count: jax.Array  # int32, number of steps summed
    total: Metrics  # sums over these steps
    last: Metrics  # those of the newest step, even if it failed

    @classmethod
    def zeros(cls, metrics: Any) -> "RunningMetrics":
        """Returns zeroed metrics of these shapes and dtypes."""
        total, last = (jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics) for _ in range(2))
        return cls(jnp.zeros((), jnp.int32), total, last)

    def add(self, metrics: Metrics) -> "RunningMetrics":
        return RunningMetrics(self.count + 1, jax.tree.map(jnp.add, self.total, metrics), metrics)

    def reset(self) -> "RunningMetrics":
        return self.replace(count=jnp.zeros_like(self.count), total=jax.tree.map(jnp.zeros_like, self.total))


class RunState(struct.PyTreeNode):
    """Everything a run needs to resume.

    Attributes:
        step: int32, student steps taken.
        synthesis_step: int32, synthesis steps taken.
        key: the root key; every draw folds a purpose and a counter into it.
        student: the network being trained.
        aux: the method's state, opaque.
        synthesis, training: metrics of the current epoch.
        failed: bool, whether the newest step was non-finite and has been undone.
        rollbacks: int32, number of rollbacks to a checkpoint so far.
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
        """Returns the state before the first step, with empty metrics."""
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
    """Returns the key of one draw: the root key with the draw's purpose and a counter folded in."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), counter)


def keep_if_finite(state: RunState, updated: RunState, metrics: Metrics, tally: str) -> RunState:
    """Returns `updated` if all metrics are finite; else `state`, marked failed, with these metrics as its last."""
    checks = [jnp.all(jnp.isfinite(m)) for m in jax.tree.leaves(metrics)]
    finite = jnp.all(jnp.stack(checks)) if checks else jnp.ones((), bool)
    good = finite & ~state.failed
    kept: RunState = jax.tree.map(functools.partial(jnp.where, good), updated, state)
    first_bad = ~finite & ~state.failed
    before: RunningMetrics = getattr(kept, tally)
    last = jax.tree.map(functools.partial(jnp.where, first_bad), metrics, before.last)
    return kept.replace(failed=state.failed | ~finite, **{tally: before.replace(last=last)})
