"""DFQ: adversarial images that match the teacher's BatchNorm statistics.

Y. Choi, J. Choi, M. El-Khamy, J. Lee, "Data-Free Network Quantization With Adversarial Knowledge Distillation",
CVPR Workshops 2020. For a batch x = G_θ(z) `[B, H, W, C]`, z ~ N(0, I) `[B, nz]`, teacher's and student's logits
z_t, z_s `[B, K]`, p̄ `[K]` the batch mean of softmax(z_t), and for each BatchNorm layer of the teacher the mean and
variance μ, σ² `[channels]` of its input beside the running μ_bn, σ²_bn:

    generator   − α_adv · 1/B Σ_i KL(softmax z_t(x_i) ‖ softmax z_s(x_i))   over every image, through both networks
                + α_bn · Σ_layers (‖μ − μ_bn‖₂ + ‖σ² − σ²_bn‖₂)
                + α_oh · 1/B Σ_i CE(z_t(x_i), arg max z_t(x_i)) + α_bal · Σ_c p̄_c ln(p̄_c + ε)
    student     1/B Σ_i KL(softmax z_t(x_i) ‖ softmax z_s(x_i)),   T = 1

with ε = 1e-8, which keeps an absent class out of ln 0; the release has none.

The paper matches the statistics with the KL divergence of two Gaussians and sharpens with the entropy of each
prediction instead of the cross entropy to its arg max; it warms the generator up without the adversarial term,
and may train several generators and students at once. This module follows the benchmark of Fang et al.
("Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021): the terms above with weights 1,
1, 1 and 20, one generator, one student. Its scripts set a temperature of 20 that its code ignores; T is 1. Adam's
betas are that benchmark's (0.5, 0.999); CuDFKD's release, a fork of it, has (0.9, 0.99). As published, the fork's
DFQ scripts crash at the first student step: they omit `--curr_option none` or put it on a separate line.
"""

import functools

import optax

from cudfkd_jax.methods import benchmark, generative
from cudfkd_jax.methods.base import Method, MethodSpec
from cudfkd_jax.methods.context import MethodContext
from cudfkd_jax.objectives import losses, terms
from cudfkd_jax.objectives.terms import Term


def build(context: MethodContext) -> Method:
    """Builds DFQ."""
    s = context.synthesis
    terms = synthesis_terms(
        adversarial_weight=s.adversarial_weight,
        bn_weight=s.bn_weight,
        class_weight=s.class_weight,
        balance_weight=s.balance_weight,
    )
    return generative.build(context, terms, context.student_loss())


def synthesis_terms(
    *, adversarial_weight: float, bn_weight: float, class_weight: float, balance_weight: float
) -> tuple[Term, ...]:
    """Returns the generator's objective, without terms of weight 0.

    Args:
        adversarial_weight: α_adv >= 0.
        bn_weight: α_bn >= 0; needs a teacher with BatchNorm.
        class_weight: α_oh >= 0.
        balance_weight: α_bal >= 0.
    """
    chosen = []
    if adversarial_weight:
        divergence = functools.partial(losses.kl_divergence, temperature=1.0)
        chosen.append(terms.adversarial_term(divergence, optax.constant_schedule(adversarial_weight)))
    weighted = (
        (terms.bn_term, bn_weight),
        (terms.class_term, class_weight),
        (terms.balance_term, balance_weight),
    )
    return (*chosen, *(term(weight) for term, weight in weighted if weight))


SPEC = MethodSpec(
    name="dfq",
    label="DFQ",
    build=build,
    recipe={
        "generator": benchmark.LARGE_GENERATOR,
        "distill": {**benchmark.KL, **benchmark.TEN_TO_ONE},
        "synthesis": {"adversarial_weight": 1.0, "bn_weight": 1.0, "class_weight": 1.0, "balance_weight": 20.0},
    },
    needs_batch_norm=True,
    reads=generative.READS,
)
