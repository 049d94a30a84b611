"""The student's objective: a divergence from the teacher's logits, plain or self-paced (Li et al., Eq. 6)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cudfkd_jax.models.capture import Outputs
from cudfkd_jax.objectives import curriculum, losses
from cudfkd_jax.objectives.terms import Metrics, SampleLoss
from cudfkd_jax.runtime.devices import Axis

GRANULARITIES = ("sample", "batch")
DIVERGENCES = ("kl", "js")
STUDENT_LOSSES = ("kl", "l1", "js")

# (student_outputs, teacher_outputs, aux, step, axis) -> (loss, metrics); see `methods.base.Method`
StudentLoss = Callable[[Outputs, Outputs, Any, jax.Array, Axis], tuple[jax.Array, Metrics]]


def divergence(name: str, *, released_js: bool) -> losses.Divergence:
    """Returns D of Eq. 4 by name, one of `DIVERGENCES`; `released_js` selects the released code's clamped JS."""
    js = losses.js_divergence_released if released_js else losses.js_divergence
    return {"kl": losses.kl_divergence, "js": js}[name]


def student_divergence(name: str, temperature: float, *, released_js: bool) -> SampleLoss:
    """Returns D of Eq. 6 by name, one of `STUDENT_LOSSES`; "l1" acts on logits and ignores the temperature."""
    if name == "l1":
        return losses.l1_distance
    chosen = divergence(name, released_js=released_js)
    return lambda teacher, student: chosen(teacher, student, temperature)


def plain_student_loss(sample_loss: SampleLoss) -> StudentLoss:
    """Returns 1/B Σ_i D(z_t(x_i), z_s(x_i)) as a `Method.student_loss`."""

    def student_loss(
        student: Outputs, teacher: Outputs, aux: Any, step: jax.Array, axis: Axis
    ) -> tuple[jax.Array, Metrics]:
        loss = jnp.mean(sample_loss(teacher.value, student.value))
        return loss, axis.mean({"student_loss": loss, "difficulty": loss})

    return student_loss


class AddedLoss(NamedTuple):
    """A loss per image that is added to D of Eq. 6 before v* is computed.

    Attributes:
        name: the metric name of its unweighted mean; contains "loss".
        value: `(student_outputs, teacher_outputs, aux, axis) -> [B / axis.size]`.
        weight: of the value.
    """

    name: str
    value: Callable[[Outputs, Outputs, Any, Axis], jax.Array]
    weight: float


def self_paced_student_loss(
    *,
    sample_loss: SampleLoss,
    strategy: str,
    granularity: str,
    lambda_t: optax.Schedule,
    added: AddedLoss | None = None,
) -> StudentLoss:
    """Returns the self-paced objective, Eq. 6, as a `Method.student_loss`.

    Args:
        sample_loss: D of Eq. 6.
        strategy: the form of v*, one of `curriculum.STRATEGIES`.
        granularity: "sample" computes one v* per image, "batch" one v* for all from the mean loss (the released
            code).
        lambda_t: λ(t), a schedule of the student step.
        added: a further loss per image.
    """

    def student_loss(
        student: Outputs, teacher: Outputs, aux: Any, step: jax.Array, axis: Axis
    ) -> tuple[jax.Array, Metrics]:
        sample_losses = sample_loss(teacher.value, student.value)
        more = {}
        if added:
            addition = added.value(student, teacher, aux, axis)
            sample_losses, more = sample_losses + added.weight * addition, {added.name: jnp.mean(addition)}
        mean_loss = axis.mean(jnp.mean(sample_losses))
        difficulty = sample_losses if granularity == "sample" else jnp.full_like(sample_losses, mean_loss)
        difficulty = jax.lax.stop_gradient(difficulty)
        lam = lambda_t(step)
        v = jax.lax.stop_gradient(curriculum.spl_weights(strategy, difficulty, lam))
        loss = jnp.mean(v * sample_losses)
        metrics = {
            "student_loss": loss,
            "difficulty": mean_loss,
            "mean_v": jnp.mean(v),
            "share_v_below_half": jnp.mean(v < 0.5),
            "regulariser_g": jnp.mean(curriculum.spl_regulariser(strategy, v, lam)),
            "lambda": lam,
            **more,
        }
        return loss, axis.mean(metrics)

    return student_loss
