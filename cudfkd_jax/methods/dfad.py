"""DFAD: generator and student play a game about the distance of their logits.

G. Fang, J. Song, C. Shen, X. Wang, D. Chen, M. Song, "Data-Free Adversarial Distillation", arXiv:1912.11006,
2019. For a batch x = G_θ(z) `[B, H, W, C]`, z ~ N(0, I) `[B, nz]`, and teacher's and student's logits z_t, z_s
`[B, K]`:

    generator   − 1/(B·K) Σ_i ‖z_t(x_i) − z_s(x_i)‖₁      over every image, gradients through both networks
    student       1/(B·K) Σ_i ‖z_t(x_i) − z_s(x_i)‖₁

The logarithm −ln(1 + distance), which the paper offers for the generator and the original release takes for
segmentation, is left out, as in that release's code for classifiers. That release also keeps the student in
training mode while the generator trains, so that its running statistics follow the generator's batches too; and
its generator (128 channels) ends in tanh and a BatchNorm without scale. Here both networks are frozen while the
generator trains and the generator is the one all methods share, as in the benchmark of Fang et al. ("Contrastive
Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021). As in the original, and unlike in the
benchmark, the generator's learning rate falls with the student's: a student that hardly moves any more would be
shown ever harder images (on scikit-learn's digits 34 % at the end instead of 97 %). Adam's betas are the
benchmark's (0.5, 0.999); CuDFKD's release, a fork of it, has (0.9, 0.99).

Nothing in the objective balances the classes. In 1,500 student steps on the digits, WRN-16-2 to WRN-16-1, a
student at learning rate 0.1 came to 97 % with one seed and to 84 % with another, where the generator no longer
made a class (the ones: 0 % right, all others 94 to 100 %). Neither the generator's learning rate of 3e-4 (89 %),
nor twice its channels (84 %), its weights from N(0, 0.02) (65 %), its end in tanh and BatchNorm (78 %), nor weight
decay 5e-4 and ten student steps a round (89 %) mended it; the student's learning rate of 0.03 did (98 %). So
`configs/digits.py` has that.
"""

import optax

from cudfkd_jax.objectives import losses, terms
from cudfkd_jax.objectives.terms import Term


def synthesis_terms() -> tuple[Term, ...]:
    """The generator's objective: one term, whose weight would change nothing under Adam."""
    return (terms.adversarial_term(losses.l1_distance, optax.constant_schedule(1.0)),)
