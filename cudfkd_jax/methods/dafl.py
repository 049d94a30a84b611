"""DAFL: a generator that pleases the teacher, without a look at the student.

H. Chen, Y. Wang, C. Xu, Z. Yang, C. Liu, B. Shi, C. Xu, C. Xu, Q. Tian, "Data-Free Learning of Student
Networks", ICCV 2019. For a batch x = G_θ(z) `[B, H, W, C]`, z ~ N(0, I) `[B, nz]`, teacher's and student's
logits z_t, z_s `[B, K]`, the teacher's features φ_t before its last layer `[B, D]`, and p̄ `[K]` the batch mean
of softmax(z_t):

    generator   α_oh · 1/B Σ_i CE(z_t(x_i), arg max z_t(x_i)) − α_a · mean|φ_t(x)| + α_bal · Σ_c p̄_c ln(p̄_c + ε)
    student     1/B Σ_i KL(softmax z_t(x_i) ‖ softmax z_s(x_i)),   T = 1

with ε = 1e-8, which keeps an absent class out of ln 0; the releases have none.

The original release takes one generator step and one student step on the same images, weighs the terms with 1,
0.1 and 5, takes the logarithm of p̄ to the base 10, and lets its generator end in tanh and a BatchNorm without
scale. Here the method has the form in which it is compared with others (the benchmark of Fang et al.,
"Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021): several student steps on fresh
images after each generator step, a sigmoid at the generator's end, and weights 1, 0.001 and 20.
"""

from cudfkd_jax.objectives import terms
from cudfkd_jax.objectives.terms import Term


def synthesis_terms(*, class_weight: float, activation_weight: float, balance_weight: float) -> tuple[Term, ...]:
    """The generator's objective; a term of weight 0 is left out.

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
