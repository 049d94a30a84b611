"""Training with data: a teacher, a student from scratch, and ordinary distillation for comparison."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cudfkd_jax.data.augment import random_crop_flip
from cudfkd_jax.models.capture import Variables
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.models.train_state import TrainState, gradient_norm
from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.terms import Metrics
from cudfkd_jax.runtime.devices import SINGLE, Axis
from cudfkd_jax.training.state import (
    AUGMENTATION,
    DROPOUT,
    ORDER,
    STUDENT_INIT,
    RunningMetrics,
    RunState,
    keep_if_finite,
    purpose_key,
)
from cudfkd_jax.training.tracing import traced_once

HostOrDeviceArray = jax.Array | np.ndarray


class Distillation(NamedTuple):
    """Ordinary knowledge distillation (Hinton et al., 2015, "Distilling the knowledge in a neural network").

    (1 − weight) · CE(z_s, y)  +  weight · T² KL(teacher ‖ student)
    """

    teacher: Classifier
    temperature: float
    weight: float  # in [0, 1]


@dataclasses.dataclass(frozen=True, eq=False)
class SupervisedProblem:
    """The constants of a supervised training run."""

    network: Classifier
    optimiser: optax.GradientTransformation
    learning_rate: optax.Schedule  # the schedule inside `optimiser`, for reporting
    batch_size: int  # over all devices
    padding: int  # pixels added on each side before a random crop to the original size; 0: none
    flip: bool  # mirror half of the images
    distillation: Distillation | None = None  # None: cross entropy only


def init_state(
    key: jax.Array,
    images: HostOrDeviceArray,
    labels: HostOrDeviceArray,
    *teacher_variables: Variables,
    problem: SupervisedProblem,
) -> RunState:
    """Returns the initial state for a training set: `images` uint8 `[N, H, W, C]`, `labels` `[N]`."""
    variables = problem.network.init(purpose_key(key, STUDENT_INIT), tuple(images.shape[1:]))
    state = RunState.create(key, TrainState.create(variables, problem.optimiser))
    train = functools.partial(_train, problem=problem, axis=SINGLE)
    _, metrics = jax.eval_shape(train, state, images, labels, *teacher_variables)
    return state.replace(training=RunningMetrics.zeros(metrics))


def supervised_step(
    state: RunState,
    images: HostOrDeviceArray,
    labels: HostOrDeviceArray,
    *teacher_variables: Variables,
    problem: SupervisedProblem,
    axis: Axis,
) -> RunState:
    """Takes one SGD step on the next batch of the epoch's random order, which drops the last partial batch.

    Args:
        state: its `student` is the network being trained.
        images: the training set, uint8 `[N, H, W, C]`, replicated on every device.
        labels: int32 `[N]`.
        teacher_variables: one tree if `problem.distillation` is set, else none.
    """
    network, metrics = _train(state, images, labels, *teacher_variables, problem=problem, axis=axis)
    updated = state.replace(student=network, step=state.step + 1, training=state.training.add(metrics))
    return keep_if_finite(state, updated, metrics, "training")


def _train(
    state: RunState,
    images: HostOrDeviceArray,
    labels: HostOrDeviceArray,
    *teacher_variables: Variables,
    problem: SupervisedProblem,
    axis: Axis,
) -> tuple[TrainState, Metrics]:
    train = traced_once(_update, problem, axis)
    return train(state.student, state.key, state.step, images, labels, *teacher_variables)


def _update(
    network: TrainState,
    root_key: jax.Array,
    step: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *teacher_variables: Variables,
    problem: SupervisedProblem,
    axis: Axis,
) -> tuple[TrainState, Metrics]:
    rows = _batch_rows(root_key, step, images.shape[0], problem.batch_size)
    # Every device augments the whole batch, which is cheap, so that the crops do not depend on the device count.
    key = purpose_key(root_key, AUGMENTATION, step)
    batch = random_crop_flip(key, images[rows], padding=problem.padding, flip=problem.flip)
    x, y = axis.shard(batch).astype(float) / 255, labels[axis.shard(rows)]

    dropout_key = purpose_key(root_key, DROPOUT, step)

    def objective(params):
        variables = network.variables | {"params": params}
        outputs = problem.network(variables, x, train=True, axis=axis, key=dropout_key)
        loss, metrics = _loss(
            outputs.value, x, y, *teacher_variables, distillation=problem.distillation, axis=axis
        )
        metrics["train_acc1"] = 100 * jnp.mean(jnp.argmax(outputs.value, -1) == y)
        return loss, (outputs.batch_stats, outputs.collections, {"loss": loss, **metrics})

    gradients, (batch_stats, collections, metrics) = jax.grad(objective, has_aux=True)(network.params)
    gradients, metrics = axis.mean(gradients), axis.mean(metrics)
    metrics["gradient_norm"] = gradient_norm(gradients)
    metrics["learning_rate"] = problem.learning_rate(step)
    return network.update(gradients, batch_stats, problem.optimiser).with_collections(collections), metrics


def _loss(
    logits: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *teacher_variables: Variables,
    distillation: Distillation | None,
    axis: Axis,
) -> tuple[jax.Array, Metrics]:
    class_loss = jnp.mean(losses.cross_entropy(logits, labels))
    if distillation is None:
        return class_loss, {}
    (variables,) = teacher_variables
    teacher_logits = distillation.teacher(variables, images, axis=axis).value
    kd_loss = jnp.mean(losses.kl_divergence(teacher_logits, logits, distillation.temperature))
    loss = (1 - distillation.weight) * class_loss + distillation.weight * kd_loss
    return loss, {"class_loss": class_loss, "kd_loss": kd_loss}


def _batch_rows(root_key: jax.Array, step: jax.Array, count: int, batch_size: int) -> jax.Array:
    epoch, position = jnp.divmod(step, count // batch_size)
    order = jax.random.permutation(purpose_key(root_key, ORDER, epoch), count)
    return jax.lax.dynamic_slice_in_dim(order, position * batch_size, batch_size)
