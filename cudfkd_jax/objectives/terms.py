"""The terms of synthesis objectives, shared by the methods that train a generator.

x = G_θ(z) is a batch of B images, z_t and z_s the logits of teacher and student on it. Gradients flow through both
networks unless stated otherwise. Every value is a mean over the whole batch on all devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cudfkd_jax.models.capture import BN, FEATURES, Outputs
from cudfkd_jax.models.layers import at_least_float32
from cudfkd_jax.objectives import losses
from cudfkd_jax.runtime.devices import Axis

STUDENT, STUDENT_FEATURES = "student", "student_features"

SampleLoss = Callable[[jax.Array, jax.Array], jax.Array]  # (teacher logits, student logits) -> [B]

Metrics = dict[str, jax.Array]  # scalars; the names of loss terms contain "loss"


class Synthetic(NamedTuple):
    """A synthetic batch and the networks' outputs; `student` is None if no term needs it."""

    images: jax.Array
    teacher: Outputs
    student: Outputs | None


class Term(NamedTuple):
    """One term of the synthesis objective.

    Attributes:
        name: the metric name of its unweighted value; contains "loss".
        value: `(synthetic, axis) -> scalar`, minimised.
        weight: a schedule of the student step.
        needs: inputs besides the teacher's logits: `STUDENT` (logits), `STUDENT_FEATURES`, or names that
            `capture.apply` captures of the teacher.
        weight_name: the metric name of the weight, "" for a constant.
    """

    name: str
    value: Callable[[Synthetic, Axis], jax.Array]
    weight: optax.Schedule
    needs: tuple[str, ...] = ()
    weight_name: str = ""


class StatefulTerm(NamedTuple):
    """A term of the synthesis objective with a state, which is part of the method's.

    Attributes:
        init: `(key) -> state`, a pytree of arrays that is the same on every device.
        value: `(synthetic, state, step, axis) -> (scalar, state)`; the new state is a constant of the gradient.
        name, weight, needs: see `Term`.
    """

    name: str
    init: Callable[[jax.Array], Any]
    value: Callable[[Synthetic, Any, jax.Array, Axis], tuple[jax.Array, Any]]
    weight: optax.Schedule
    needs: tuple[str, ...] = ()


def adversarial_term(divergence: SampleLoss, weight: optax.Schedule, *, weight_name: str = "") -> Term:
    """Returns −1/B Σ_i D(f_t(x_i), f_s(x_i)), which rewards images on which the student differs.

    Args:
        divergence: D, one value per image.
        weight: a schedule of the student step.
        weight_name: see `Term`.
    """

    def value(synthetic: Synthetic, axis: Axis) -> jax.Array:
        assert synthetic.student is not None
        return -axis.mean(jnp.mean(divergence(synthetic.teacher.value, synthetic.student.value)))

    return Term("adversarial_loss", value, weight, (STUDENT,), weight_name)


def bn_term(weight: float) -> Term:
    """Returns the alignment with the teacher's BatchNorm statistics; see `losses.bn_alignment`."""
    return Term(
        "bn_loss",
        lambda synthetic, axis: losses.bn_alignment(synthetic.teacher.bn),
        optax.constant_schedule(weight),
        (BN,),
    )


def class_term(weight: float) -> Term:
    """Returns CE* = 1/B Σ_i CE(z_t(x_i), arg max z_t(x_i)), which rewards confident teacher predictions."""

    def value(synthetic: Synthetic, axis: Axis) -> jax.Array:
        return axis.mean(jnp.mean(losses.confident_class_loss(synthetic.teacher.value)))

    return Term("class_loss", value, optax.constant_schedule(weight))


def balance_term(weight: float, temperature: float = 1.0) -> Term:
    """Returns Σ_c p̄_c ln(p̄_c + 1e-8), p̄ the batch mean of softmax(z_t / T): minimal for balanced classes."""

    def value(synthetic: Synthetic, axis: Axis) -> jax.Array:
        probabilities = jax.nn.softmax(at_least_float32(synthetic.teacher.value) / temperature)
        return losses.class_balance_loss(axis.mean(jnp.mean(probabilities, axis=0)))

    return Term("balance_loss", value, optax.constant_schedule(weight))


def feature_term(weight: float) -> Term:
    """Returns −mean |φ|, φ the teacher's penultimate features, which real images excite more than noise."""

    def value(synthetic: Synthetic, axis: Axis) -> jax.Array:
        assert synthetic.teacher.features is not None
        return -axis.mean(jnp.mean(jnp.abs(at_least_float32(synthetic.teacher.features))))

    return Term("feature_loss", value, optax.constant_schedule(weight), (FEATURES,))
