"""The run state and the pure step functions.

Both steps map a `RunState` to the next one, with explicit arguments, on one device or under a mapping (`axis`).
A step with non-finite metrics or gradients marks the state as failed and changes nothing else. Later steps leave
a failed state unchanged, so the loop may check the flag at any interval.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cudfkd_jax.methods.base import Method, RoundHook
from cudfkd_jax.models.capture import Outputs, Variables
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.models.train_state import TrainState, gradient_norm
from cudfkd_jax.objectives.terms import Metrics
from cudfkd_jax.runtime.devices import SINGLE, Axis
from cudfkd_jax.training.state import (
    BEGIN,
    DROPOUT,
    FINISH,
    METHOD_INIT,
    STUDENT,
    STUDENT_INIT,
    SYNTHESIS,
    RunningMetrics,
    RunState,
    keep_if_finite,
    purpose_key,
)
from cudfkd_jax.training.tracing import traced_once


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """The constants of a data-free distillation run."""

    method: Method
    teacher: Classifier
    student: Classifier
    optimiser: optax.GradientTransformation  # the student's
    learning_rate: optax.Schedule  # the schedule inside `optimiser`, for reporting
    fold: bool = False  # fold the teacher's BatchNorm into its convolutions in student steps


class Batch(NamedTuple):
    """The training batch of a student step."""

    images: jax.Array  # [B / axis.size, H, W, C]
    teacher: Outputs  # the teacher's outputs on `images`


def init_state(
    key: jax.Array, teacher_variables: Variables, *, problem: Problem, image_shape: tuple[int, int, int]
) -> RunState:
    """Returns the initial state; tracing it with `jax.eval_shape` traces every step and so checks all shapes."""
    student = TrainState.create(
        problem.student.init(purpose_key(key, STUDENT_INIT), image_shape), problem.optimiser
    )
    state = RunState.create(key, student, problem.method.init(purpose_key(key, METHOD_INIT)))
    _, synthesis = jax.eval_shape(lambda s, t: _synthesise(s, t, problem, SINGLE), state, teacher_variables)
    batch = jax.eval_shape(
        lambda s, t: student_batch(s.aux, s.key, s.step, t, problem=problem, axis=SINGLE), state, teacher_variables
    )
    _, training = jax.eval_shape(lambda s, b: _train(s, b, problem, SINGLE), state, batch)
    for turn in (begin_round, finish_round):
        jax.eval_shape(lambda s, t, turn=turn: turn(s, t, problem=problem, axis=SINGLE), state, teacher_variables)
    return state.replace(synthesis=RunningMetrics.zeros(synthesis), training=RunningMetrics.zeros(training))


def synthesis_step(state: RunState, teacher_variables: Variables, *, problem: Problem, axis: Axis) -> RunState:
    """Takes one synthesis step of the method; teacher and student are frozen, in evaluation mode."""
    aux, metrics = _synthesise(state, teacher_variables, problem, axis)
    updated = state.replace(
        aux=aux, synthesis_step=state.synthesis_step + 1, synthesis=state.synthesis.add(metrics)
    )
    return keep_if_finite(state, updated, metrics, "synthesis")


def student_batch(
    aux: Any, key: jax.Array, step: jax.Array, teacher_variables: Variables, *, problem: Problem, axis: Axis
) -> Batch:
    """Returns the batch of student step `step`; `aux` and the root `key` are those of any state in its round."""
    make = traced_once(_student_batch, problem, axis)
    return make(aux, purpose_key(key, STUDENT, step), teacher_variables)


def _student_batch(
    aux: Any, key: jax.Array, teacher_variables: Variables, *, problem: Problem, axis: Axis
) -> Batch:
    method, teacher = problem.method, functools.partial(problem.teacher, teacher_variables, axis=axis)
    images = method.sample(aux, teacher, key, axis)
    outputs = teacher(images, capture=method.student_capture, fold=problem.fold)
    return Batch(images, outputs._replace(batch_stats={}, collections=()))


def student_step(
    state: RunState,
    teacher_variables: Variables,
    batch: Batch | None = None,
    *,
    problem: Problem,
    axis: Axis,
) -> RunState:
    """Takes one optimiser step of the student (train mode); method and teacher (evaluation mode) are frozen.

    Args:
        state: before the step.
        teacher_variables: frozen.
        batch: the result of `student_batch` for this step; None computes it here.
        problem, axis: see `Problem` and `Axis`.
    """
    if batch is None:
        batch = student_batch(state.aux, state.key, state.step, teacher_variables, problem=problem, axis=axis)
    student, metrics = _train(state, batch, problem, axis)
    updated = state.replace(student=student, step=state.step + 1, training=state.training.add(metrics))
    return keep_if_finite(state, updated, metrics, "training")


def begin_round(state: RunState, teacher_variables: Variables, *, problem: Problem, axis: Axis) -> RunState:
    """Runs the method's `begin` hook, before the synthesis steps of a round."""
    return _turn(state, teacher_variables, problem.method.begin, BEGIN, problem, axis)


def finish_round(state: RunState, teacher_variables: Variables, *, problem: Problem, axis: Axis) -> RunState:
    """Runs the method's `finish` hook, after the synthesis steps of a round."""
    return _turn(state, teacher_variables, problem.method.finish, FINISH, problem, axis)


def _turn(
    state: RunState,
    teacher_variables: Variables,
    turn: RoundHook | None,
    purpose: int,
    problem: Problem,
    axis: Axis,
) -> RunState:
    if turn is None:
        return state
    aux = turn(
        state.aux,
        functools.partial(problem.teacher, teacher_variables, axis=axis),
        purpose_key(state.key, purpose, state.synthesis_step),
        state.step,
        axis,
    )
    return state.replace(aux=jax.tree.map(functools.partial(jnp.where, state.failed), state.aux, aux))


def _synthesise(
    state: RunState, teacher_variables: Variables, problem: Problem, axis: Axis
) -> tuple[Any, Metrics]:
    key = purpose_key(state.key, SYNTHESIS, state.synthesis_step)
    synthesise = traced_once(_synthesis, problem, axis)
    return synthesise(state.aux, teacher_variables, state.student.variables, key, state.step)


def _synthesis(
    aux: Any,
    teacher_variables: Variables,
    student_variables: Variables,
    key: jax.Array,
    step: jax.Array,
    *,
    problem: Problem,
    axis: Axis,
) -> tuple[Any, Metrics]:
    teacher = functools.partial(problem.teacher, teacher_variables, axis=axis)
    student = functools.partial(problem.student, student_variables, axis=axis)
    return problem.method.synthesise(aux, teacher, student, key, step, axis)


def _train(state: RunState, batch: Batch, problem: Problem, axis: Axis) -> tuple[TrainState, Metrics]:
    dropout_key = purpose_key(state.key, DROPOUT, state.step)
    train = traced_once(_update, problem, axis)
    return train(state.student, state.aux, state.step, dropout_key, batch)


def _update(
    student: TrainState,
    aux: Any,
    step: jax.Array,
    dropout_key: jax.Array,
    batch: Batch,
    *,
    problem: Problem,
    axis: Axis,
) -> tuple[TrainState, Metrics]:
    method = problem.method

    def objective(params):
        variables = student.variables | {"params": params}
        outputs = problem.student(
            variables, batch.images, train=True, capture=method.student_capture, axis=axis, key=dropout_key
        )
        loss, metrics = method.student_loss(outputs, batch.teacher, aux, step, axis)
        return loss, (outputs.batch_stats, outputs.collections, metrics)

    gradients, (batch_stats, collections, metrics) = jax.grad(objective, has_aux=True)(student.params)
    gradients = axis.mean(gradients)
    metrics["student_gradient_norm"] = gradient_norm(gradients)
    metrics["learning_rate"] = problem.learning_rate(step)
    return student.update(gradients, batch_stats, problem.optimiser).with_collections(collections), metrics
