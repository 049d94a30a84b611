"""Tests whether the student's steps satisfy the convergence argument of §IV-C (Eq. 7 to 9).

With L(w) `[B]` the losses of a fixed batch and λ fixed, an update w → w' is a majorise-minimise step if

    F_λ(L(w'))  ≤  Q(L(w') | L(w))  ≤  Q(L(w) | L(w))  =  F_λ(L(w))                                       (Eq. 8)

The first inequality holds for any w', as F_λ is concave (Eq. 8). The second is a descent that an SGD step on other
images does not guarantee. Both are evaluated before and after real updates, on a copy of the state that is then
discarded.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cudfkd_jax.objectives import curriculum
from cudfkd_jax.objectives.terms import SampleLoss
from cudfkd_jax.runtime.devices import Axis, Devices
from cudfkd_jax.training.distill_steps import Problem
from cudfkd_jax.training.loops import distillation_steps
from cudfkd_jax.training.state import HELD_OUT, RunState, purpose_key

_ROUNDING = 1e-5  # relative to F: tolerance for equality in float32


class MajoriseMinimise:
    """Test of how often the inequalities of Eq. 8 hold over the next student steps of a run state."""

    def __init__(
        self,
        problem: Problem,
        teacher_variables: Any,
        devices: Devices,
        *,
        sample_loss: SampleLoss,
        strategy: str,
        lambda_t: optax.Schedule,
        batch_size: int,
        updates: int,
    ):
        """Prepares the functions without compiling them.

        Args:
            problem: its student steps are tested.
            teacher_variables: replicated.
            devices: everything is compiled for these.
            sample_loss: D of Eq. 6.
            strategy: the form of v*, one of `curriculum.STRATEGIES`.
            lambda_t: λ(t), a schedule of the student step.
            batch_size: size of the fixed batch, a multiple of the number of devices.
            updates: number of student steps to test, without a synthesis step in between.
        """
        self._problem, self._devices, self._frozen = problem, devices, teacher_variables
        self._lambda_t, self._updates = lambda_t, updates
        self._step = devices.compile(distillation_steps(problem).student)

        def losses(state: RunState, teacher_variables: Any, images: jax.Array, axis: Axis) -> jax.Array:
            rows = axis.shard(images)
            teacher = problem.teacher(teacher_variables, rows, axis=axis).value
            # Batch statistics, as in the objective of the step.
            student = problem.student(
                state.student.variables, rows, train=True, axis=axis, key=purpose_key(state.key, HELD_OUT)
            )
            return axis.gather(sample_loss(teacher, student.value))

        def values(before: jax.Array, after: jax.Array, lam: jax.Array) -> jax.Array:
            return jnp.stack(
                [
                    jnp.mean(curriculum.latent_objective(strategy, before, lam)),
                    jnp.mean(curriculum.majoriser(strategy, after, before, lam)),
                    jnp.mean(curriculum.latent_objective(strategy, after, lam)),
                ]
            )

        self._values = jax.jit(values)
        self._copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))
        self._losses = devices.compile(losses, donate_state=False)
        self._images = jax.jit(
            lambda state: problem.method.preview(state.aux, purpose_key(state.key, HELD_OUT), batch_size)
        )

    def __call__(self, state: RunState) -> dict[str, float]:
        """Tests the steps after a state (one copy), which stays unchanged.

        Returns:
            `latent_objective`, F_λ of the state on the fixed batch, mean over its images; and the percentages of
            updates `majorised` with F_λ(L') ≤ Q, `minimised` with Q ≤ F_λ(L), and `descended` with
            F_λ(L') ≤ F_λ(L), which the first two imply.
        """
        images = self._devices.replicate(self._images(state))
        copy = self._devices.replicate(self._copy(state))  # the step donates its buffers
        before, found = self._measured(copy, images), []
        for update in range(self._updates):
            lam = self._lambda_t(state.step + update)
            copy = self._step(copy, self._frozen)
            after = self._measured(copy, images)
            found.append(self._values(before, after, lam))
            before = after
        objective, bound, reached = np.asarray(jax.device_get(found)).T
        slack = _ROUNDING * np.abs(objective)
        return {
            "latent_objective": float(objective[0]),
            "majorised": float(100 * np.mean(reached <= bound + slack)),
            "minimised": float(100 * np.mean(bound <= objective + slack)),
            "descended": float(100 * np.mean(reached <= objective + slack)),
        }

    def _measured(self, state: RunState, images: Any) -> jax.Array:
        return self._devices.unreplicate(self._losses(state, self._frozen, images))
