"""CuDFKD: data-free knowledge distillation with curriculum.

J. Li, S. Zhou, L. Li, X. Yan, Z. Yu, J. Bu, "How to Teach: Learning Data-Free Knowledge Distillation from
Curriculum". Objectives, for a batch x = G_θ(z) of size B:

    generator (Eq. 4, 5)   −α_adv(t) · D(f_t(x), f_s(x)) + α_bn · L_bn(x) + α_oh · L_oh(x) + α_bal · L_bal(x)
    student   (Eq. 6)      1/B · Σ_i v*(λ(t), l_i) · l_i,   l_i = D(z_t(x_i)/T, z_s(x_i)/T)

v* is a constant of the student's gradient; g(λ, v*) is reported and not differentiated, as it does not depend
on the student. The paper leaves open, and is closed here as the authors' released code does it: D in Eq. 4 is
taken at T = 3 over the samples on which student and teacher agree, and L_oh is the cross entropy of the
*teacher's* logits to their own arg max, beside a class balance term L_bal = Σ_c p̄_c log p̄_c.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cudfkd_jax import curriculum, losses
from cudfkd_jax.capture import Outputs
from cudfkd_jax.methods.base import Metrics
from cudfkd_jax.methods.generative import Synthetic, Term
from cudfkd_jax.parallel import Axis

GRANULARITIES = ("sample", "batch")

DIVERGENCES = ("kl", "js")  # of Eq. 4
STUDENT_LOSSES = ("kl", "l1", "js")  # of Eq. 6

SampleLoss = Callable[[jax.Array, jax.Array], jax.Array]  # (teacher logits, student logits) -> [B]


def divergence(name: str, *, released_js: bool) -> losses.Divergence:
    """D of Eq. 4 by its name, one of `DIVERGENCES`; `released_js` takes the released code's clamped JS."""
    js = losses.js_divergence_released if released_js else losses.js_divergence
    return {"kl": losses.kl_divergence, "js": js}[name]


def student_divergence(name: str, temperature: float, *, released_js: bool) -> SampleLoss:
    """D of Eq. 6 by its name, one of `STUDENT_LOSSES`; "l1" is on logits and takes no temperature."""
    if name == "l1":
        return losses.l1_distance
    chosen = divergence(name, released_js=released_js)
    return lambda teacher, student: chosen(teacher, student, temperature)


def synthesis_terms(
    *,
    alpha_adv: optax.Schedule | None,
    adversarial_divergence: losses.Divergence,
    adversarial_temperature: float,
    bn_weight: float,
    class_weight: float,
    balance_weight: float,
    temperature: float,
) -> tuple[Term, ...]:
    """The generator's objective, Eq. 4 and 5; a term whose weight is constantly 0 (None) is left out.

    Args:
        alpha_adv: α_adv(t), a schedule of the student step.
        adversarial_divergence: D of Eq. 4, taken at `adversarial_temperature`.
        bn_weight: α_bn of Eq. 5.
        class_weight: α_oh of Eq. 5.
        balance_weight: α_bal.
        temperature: of the softmax in the class balance term.
    """

    def adversarial_loss(synthetic: Synthetic, axis: Axis) -> jax.Array:
        assert synthetic.student is not None
        return -axis.mean(
            jnp.mean(
                losses.masked_adversarial(
                    synthetic.teacher.value,
                    synthetic.student.value,
                    adversarial_temperature,
                    adversarial_divergence,
                )
            )
        )

    def bn_loss(synthetic: Synthetic, axis: Axis) -> jax.Array:
        return losses.bn_alignment(synthetic.teacher.bn)

    def class_loss(synthetic: Synthetic, axis: Axis) -> jax.Array:
        return axis.mean(jnp.mean(losses.confident_class_loss(synthetic.teacher.value)))

    def balance_loss(synthetic: Synthetic, axis: Axis) -> jax.Array:
        probabilities = jax.nn.softmax(synthetic.teacher.value / temperature)
        return losses.class_balance_loss(axis.mean(jnp.mean(probabilities, axis=0)))

    terms = []
    if alpha_adv is not None:
        terms.append(Term("adversarial_loss", adversarial_loss, alpha_adv, ("student",), "alpha_adv"))
    if bn_weight:
        terms.append(Term("bn_loss", bn_loss, optax.constant_schedule(bn_weight), ("bn",)))
    if class_weight:
        terms.append(Term("class_loss", class_loss, optax.constant_schedule(class_weight)))
    if balance_weight:
        terms.append(Term("balance_loss", balance_loss, optax.constant_schedule(balance_weight)))
    return tuple(terms)


def self_paced_student_loss(*, sample_loss: SampleLoss, strategy: str, granularity: str, lambda_t: optax.Schedule):
    """The student's objective, Eq. 6, as a `Method.student_loss`.

    Args:
        sample_loss: D of Eq. 6.
        strategy: which v*, one of `curriculum.STRATEGIES`.
        granularity: "sample" gives every image its own v*; "batch" one v* for all, from the mean loss (the
            released code).
        lambda_t: λ(t), a schedule of the student step.
    """

    def student_loss(student: Outputs, teacher: Outputs, step: jax.Array, axis: Axis) -> tuple[jax.Array, Metrics]:
        sample_losses = sample_loss(teacher.value, student.value)
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
        }
        return loss, axis.mean(metrics)

    return student_loss
