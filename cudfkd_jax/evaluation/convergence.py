"""Whether the student's steps do what the convergence argument of §IV-C asks of them (Eq. 7 to 9).

With L(w) `[B]` the losses of a fixed batch and λ held, one update w → w' is a majorise-minimise step where

    F_λ(L(w'))  ≤  Q(L(w') | L(w))  ≤  Q(L(w) | L(w))  =  F_λ(L(w))                                       (Eq. 8)

The first inequality holds for any w', as F_λ is concave (Eq. 8); the second is the descent that a stochastic
step, made on other images and by SGD, need not give. Both are evaluated here before and after real updates, on a
copy of the state that is thrown away.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from cudfkd_jax.objectives import curriculum
from cudfkd_jax.objectives.terms import SampleLoss
from cudfkd_jax.runtime.devices import Axis, Devices
from cudfkd_jax.training.distill_steps import Problem
from cudfkd_jax.training.loops import distillation_steps
from cudfkd_jax.training.state import HELD_OUT, RunState, purpose_key

_ROUNDING = 1e-5  # of F: what float32 makes of an equality


class MajoriseMinimise:
    """Counts over the next student steps of a run state how often the inequalities of Eq. 8 hold."""

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
        """Compiles nothing yet.

        Args:
            problem: whose student steps are looked at.
            teacher_variables: replicated.
            devices: what everything is compiled for.
            sample_loss: D of Eq. 6.
            strategy: which v*, one of `curriculum.STRATEGIES`.
            lambda_t: λ(t), a schedule of the student step.
            batch_size: of the fixed batch, a multiple of the devices.
            updates: student steps that are looked at, without a synthesis step between them.
        """
        self._problem, self._devices, self._frozen = problem, devices, teacher_variables
        self._strategy, self._lambda_t, self._updates = strategy, lambda_t, updates
        self._step = devices.compile(distillation_steps(problem).student)

        def losses(state: RunState, teacher_variables: Any, images: jax.Array, axis: Axis) -> jax.Array:
            rows = axis.shard(images)
            teacher = problem.teacher(teacher_variables, rows, axis=axis).value
            # With the statistics of the batch, as in the objective that the step descends.
            student = problem.student(
                state.student.variables, rows, train=True, axis=axis, key=purpose_key(state.key, HELD_OUT)
            )
            return axis.gather(sample_loss(teacher, student.value))

        self._losses = devices.compile(losses, donate_state=False)
        self._images = jax.jit(
            lambda state: problem.method.preview(state.aux, purpose_key(state.key, HELD_OUT), batch_size)
        )

    def __call__(self, state: RunState) -> dict[str, float]:
        """Looks at the steps after a state (one copy of it), which stays as it is.

        Returns:
            `latent_objective`, F_λ of the state on the fixed batch, mean over its images; `majorised` and
            `minimised`, the share of updates in percent with F_λ(L') ≤ Q and with Q ≤ F_λ(L); and `descended`,
            that with F_λ(L') ≤ F_λ(L), which follows where both hold.
        """
        images = self._devices.replicate(self._images(state))
        copy = self._devices.replicate(jax.tree.map(jnp.copy, state))  # the step gives its buffers up
        before, values = self._measured(copy, images), []
        for update in range(self._updates):
            lam = self._lambda_t(state.step + update)
            copy = self._step(copy, self._frozen)
            after = self._measured(copy, images)
            values.append(
                (
                    jnp.mean(curriculum.latent_objective(self._strategy, before, lam)),
                    jnp.mean(curriculum.majoriser(self._strategy, after, before, lam)),
                    jnp.mean(curriculum.latent_objective(self._strategy, after, lam)),
                )
            )
            before = after
        objective, bound, reached = jnp.asarray(values).T
        slack = _ROUNDING * jnp.abs(objective)
        return {
            "latent_objective": float(objective[0]),
            "majorised": float(100 * jnp.mean(reached <= bound + slack)),
            "minimised": float(100 * jnp.mean(bound <= objective + slack)),
            "descended": float(100 * jnp.mean(reached <= objective + slack)),
        }

    def _measured(self, state: RunState, images: Any) -> jax.Array:
        return self._devices.unreplicate(self._losses(state, self._frozen, images))
