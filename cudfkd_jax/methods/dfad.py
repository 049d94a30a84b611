"""DFAD: an adversarial game in which the generator maximises and the student minimises the logit distance.

G. Fang, J. Song, C. Shen, X. Wang, D. Chen, M. Song, "Data-Free Adversarial Distillation", arXiv:1912.11006,
2019. For a batch x = G_θ(z) `[B, H, W, C]`, z ~ N(0, I) `[B, nz]`, and teacher's and student's logits z_t, z_s
`[B, K]`:

    generator   − 1/(B·K) Σ_i ‖z_t(x_i) − z_s(x_i)‖₁      over every image, gradients through both networks
    student       1/(B·K) Σ_i ‖z_t(x_i) − z_s(x_i)‖₁

The loss −ln(1 + distance), which the paper proposes for the generator and the original release uses for
segmentation, is left out, as in that release's code for classifiers. That release also keeps the student in
training mode while the generator trains, so that the generator's batches update its running statistics too, and
its generator (128 channels) ends in tanh and a BatchNorm without scale. Here both networks are frozen while the
generator trains, and all methods share one generator, as in the benchmark of Fang et al. ("Contrastive Model
Inversion for Data-Free Knowledge Distillation", IJCAI 2021). As in the original, and unlike the benchmark, the
generator's learning rate decays with the student's: otherwise a student with a small learning rate faces ever
harder images (on scikit-learn's digits 34 % at the end instead of 97 %). Adam's betas are the benchmark's
(0.5, 0.999); CuDFKD's release, a fork of it, has (0.9, 0.99).

Nothing in the objective balances the classes. In 1,500 student steps on the digits, WRN-16-2 to WRN-16-1, a
student at learning rate 0.1 reached 97 % with one seed and 84 % with another, where the generator had dropped
a class (the ones: 0 % right, all others 94 to 100 %). None of these fixed it: a generator learning rate of 3e-4
(89 %), twice its channels (84 %), weights from N(0, 0.02) (65 %), an output of tanh and BatchNorm (78 %), or
weight decay 5e-4 with ten student steps per round (89 %). A student learning rate of 0.03 did (98 %), so
`configs/digits.py` sets it.
"""

import optax

from cudfkd_jax.methods import benchmark, generative
from cudfkd_jax.methods.base import Method, MethodSpec
from cudfkd_jax.methods.context import MethodContext
from cudfkd_jax.objectives import losses, terms
from cudfkd_jax.objectives.terms import Term


def build(context: MethodContext) -> Method:
    """Builds DFAD."""
    return generative.build(context, synthesis_terms(), context.student_loss())


def synthesis_terms() -> tuple[Term, ...]:
    """Returns the generator's objective: one term, whose weight would have no effect under Adam."""
    return (terms.adversarial_term(losses.l1_distance, optax.constant_schedule(1.0)),)


# As in both originals, the generator's learning rate decays with the student's. Otherwise a student that hardly
# changes gets ever harder images (digits: 34 % at the end, 94 % three epochs earlier).
SPEC = MethodSpec(
    name="dfad",
    label="DFAD",
    build=build,
    recipe={
        "generator": {**benchmark.LARGE_GENERATOR, "schedule": "cosine"},
        "distill": {**benchmark.KL, **benchmark.FIVE_TO_ONE, "loss": "l1"},
    },
    reads=generative.READS,
)
