"""DAFL: a generator trained on the teacher alone, independent of the student.

H. Chen, Y. Wang, C. Xu, Z. Yang, C. Liu, B. Shi, C. Xu, C. Xu, Q. Tian, "Data-Free Learning of Student
Networks", ICCV 2019. For a batch x = G_θ(z) `[B, H, W, C]`, z ~ N(0, I) `[B, nz]`, teacher's and student's
logits z_t, z_s `[B, K]`, the teacher's features φ_t before its last layer `[B, D]`, and p̄ `[K]` the batch mean
of softmax(z_t):

    generator   α_oh · 1/B Σ_i CE(z_t(x_i), arg max z_t(x_i)) − α_a · mean|φ_t(x)| + α_bal · Σ_c p̄_c ln(p̄_c + ε)
    student     1/B Σ_i KL(softmax z_t(x_i) ‖ softmax z_s(x_i)),   T = 1

with ε = 1e-8, which keeps an absent class out of ln 0; the releases have none.

The original release takes one generator step and one student step on the same images, weights the terms by 1,
0.1 and 5, takes the base-10 logarithm of p̄, and ends its generator in tanh and a BatchNorm without scale. This
module follows the benchmark of Fang et al. ("Contrastive Model Inversion for Data-Free Knowledge Distillation",
IJCAI 2021): several student steps on fresh images after each generator step, a sigmoid as the generator's output,
and weights 1, 0.001 and 20.
"""

from cudfkd_jax.methods import benchmark, generative
from cudfkd_jax.methods.base import Method, MethodSpec
from cudfkd_jax.methods.context import MethodContext
from cudfkd_jax.objectives import terms
from cudfkd_jax.objectives.terms import Term


def build(context: MethodContext) -> Method:
    """Builds DAFL."""
    s = context.synthesis
    terms = synthesis_terms(
        class_weight=s.class_weight, activation_weight=s.activation_weight, balance_weight=s.balance_weight
    )
    return generative.build(context, terms, context.student_loss())


def synthesis_terms(*, class_weight: float, activation_weight: float, balance_weight: float) -> tuple[Term, ...]:
    """Returns the generator's objective, without terms of weight 0.

    Args:
        class_weight: α_oh >= 0.
        activation_weight: α_a >= 0; needs a teacher whose features can be captured.
        balance_weight: α_bal >= 0.
    """
    weighted = (
        (terms.class_term, class_weight),
        (terms.feature_term, activation_weight),
        (terms.balance_term, balance_weight),
    )
    return tuple(term(weight) for term, weight in weighted if weight)


SPEC = MethodSpec(
    name="dafl",
    label="DAFL",
    build=build,
    recipe={
        "generator": {**benchmark.LARGE_GENERATOR, "latent_dim": 512},
        "distill": {**benchmark.KL, **benchmark.FIVE_TO_ONE},
        "synthesis": {"class_weight": 1.0, "activation_weight": 1e-3, "balance_weight": 20.0},
    },
    reads=generative.READS,
)
