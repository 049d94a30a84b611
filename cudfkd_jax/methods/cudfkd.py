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

import functools

import optax

from cudfkd_jax import losses
from cudfkd_jax.methods import terms
from cudfkd_jax.methods.terms import Term


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
    chosen = []
    if alpha_adv is not None:
        adversarial = functools.partial(
            losses.masked_adversarial, temperature=adversarial_temperature, divergence=adversarial_divergence
        )
        chosen.append(terms.adversarial_term(adversarial, alpha_adv, weight_name="alpha_adv"))
    if bn_weight:
        chosen.append(terms.bn_term(bn_weight))
    if class_weight:
        chosen.append(terms.class_term(class_weight))
    if balance_weight:
        chosen.append(terms.balance_term(balance_weight, temperature))
    return tuple(chosen)
